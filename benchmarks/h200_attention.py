"""Measures what Gossamer promises of attention on one H200, beside every peer, and says whether it holds.

    python benchmarks/h200_attention.py [--only windows groups document tokens launch long] [--without flex fa4 ...]
                                        [--folder FOLDER] [--small]

The peers are cuDNN's and FlashAttention's dense kernels, FlexAttention and, where it is installed, FlashAttention-4
(`pip install --pre flash-attn-4`). Takes minutes, most of them compiling FlexAttention. `--only` runs some sections and
keeps what FOLDER holds of the others; `--without` leaves contenders out, and the page says so; `--small` is a rehearsal
that any machine can run. Writes `h200_attention.json`, `.md` and two pictures. Exits with 1 if a promise is broken.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

from gossamer.bench import BenchConfig, Promise, Results, markdown, run, save_bars, save_plot, summary, verdict_rows
from gossamer.bench.config import AttentionName

RESULTS = Path(__file__).parent / "results"
NAME = "h200_attention"
FORWARD, TRAINING, LAUNCH = "attention forward", "attention forward + backward", "launch of attention forward"

BASE = BenchConfig(
    cases=("forward", "training"),
    contenders=("cudnn", "window", "flex", "fa4"),
    tokens=65536,
    lengths=(16384,),
    repeats=30,
    warmup=2,
    precision="bf16",
    device="cuda",
)
NARROW, WIDE = {"heads": 12, "head_width": 64}, {"heads": 16, "head_width": 128}
SECTIONS: dict[str, tuple[BenchConfig, ...]] = {
    "windows": tuple(replace(BASE, **shape, window=window) for shape in (NARROW, WIDE) for window in (128, 256, 512)),
    "groups": (replace(BASE, heads=32, key_heads=8, head_width=128, window=512),),
    "document": (
        replace(
            BASE,
            **NARROW,
            contenders=("cudnn", "flash", "document", "flex-document"),
            lengths=(1024, 4096, 16384, 65536),
            repeats=10,
        ),
    ),
    "tokens": (
        replace(BASE, **NARROW, window=512, contenders=("cudnn", "window", "window+tokens", "flex-window+tokens")),
    ),
    "launch": (
        replace(BASE, **NARROW, contenders=("sdpa", "window", "document", "fa4"), repeats=200, cases=("launch",)),
    ),
    "long": (
        replace(
            BASE,
            **NARROW,
            contenders=("window", "fa4"),
            tokens=None,
            lengths=(2**20,),
            repeats=3,
            cases=("training",),
        ),
    ),
}

OVER_FA4 = {(64, FORWARD): 1.9, (64, TRAINING): 1.6, (128, FORWARD): 1.45, (128, TRAINING): 1.35}
GROUPS, DOCUMENT, DOCUMENT_LENGTH = 1.4, 10.0, 16384
TOKENS, LONG_MEMORY, LAUNCH_MICROSECONDS = 1.25, 1.3, 25.0

COMPILED = ("window", "document", "window+tokens", "flex", "flex-document", "flex-window+tokens")
PROCESSES = 12

Runs = dict[str, list[Results]]


def small(config: BenchConfig) -> BenchConfig:
    """The same rows at a size, and in a number format, that any machine can rehearse."""
    lengths = tuple(max(64, n // 256) for n in config.lengths)
    shape = {"heads": 6 if config.key_heads is None else 4, "head_width": 16, "window": config.window // 16}
    tokens, groups = config.tokens and 256, config.key_heads and 2
    rehearsal = {"repeats": 1, "warmup": 1, "precision": "fp32", "device": "cpu"}
    return replace(config, **shape, **rehearsal, lengths=lengths, tokens=tokens, key_heads=groups)


def promises(runs: Runs) -> Iterator[Promise]:
    """Every promise of the sections that ran, with the figure that decides it."""
    for results in runs.get("windows", ()):
        yield from window_promises(results)
    for results in runs.get("groups", ()):
        yield at_least(GROUPS, "every peer that ran", results, TRAINING, "window")
    for results in runs.get("document", ()):
        yield from document_promises(results)
    for results in runs.get("tokens", ()):
        yield from (tokens_promise(results, case) for case in (FORWARD, TRAINING))
    for results in runs.get("long", ()):
        ratio = memory_ratio(results)
        text = f"{title(results)}: memory in inputs + outputs + gradients, at most {LONG_MEMORY:g}"
        yield Promise(text, ratio, kept=ratio is not None and ratio <= LONG_MEMORY)
    for results in runs.get("launch", ()):
        times = [1e6 * m.seconds for m in results.measurements(LAUNCH, "window")]
        text = f"{LAUNCH}, at most {LAUNCH_MICROSECONDS:g} microseconds"
        yield Promise(text, max(times, default=None), kept=bool(times) and max(times) <= LAUNCH_MICROSECONDS)


def window_promises(results: Results) -> Iterator[Promise]:
    config = results.config
    for case in (FORWARD, TRAINING):
        limit = OVER_FA4.get((config.head_width, case), 0) if config.window == 256 else 0
        if limit:
            yield at_least(limit, "FlashAttention-4", results, case, "window", over=("fa4",))
        yield at_least(1, "every peer that ran", results, case, "window")


def document_promises(results: Results) -> Iterator[Promise]:
    dense = ("cudnn", "flash")
    for length in results.config.lengths:
        if length == DOCUMENT_LENGTH:
            yield at_least(DOCUMENT, "dense", results, TRAINING, "document", over=dense, length=length)
            rival = ("flex-document",)
            yield at_least(DOCUMENT, "FlexAttention", results, TRAINING, "document", over=rival, length=length)
        for case in (FORWARD, TRAINING):
            yield at_least(1, "dense", results, case, "document", over=dense, length=length)


def at_least(
    limit: float,
    whom: str,
    results: Results,
    case: str,
    contender: str,
    *,
    over: tuple[str, ...] = (),
    length: int | None = None,
) -> Promise:
    """That our contender is so many times as fast as the fastest of `over`, or as every rival that was measured."""
    length = length or results.config.lengths[-1]
    m = results.measurement(case, contender, length)
    rival = m and results.best_rival(m)
    ratio = None if m is None else results.speedup(m, over) if over else rival and rival.seconds / m.seconds
    text = f"{title(results)}, {length:,} tokens, {case}: at least {limit:g}x as fast as {whom}"
    return Promise(text, ratio, kept=ratio is not None and ratio >= limit)


def tokens_promise(results: Results, case: str) -> Promise:
    length = results.config.lengths[-1]
    alone, joint = (results.measurement(case, name, length) for name in ("window", "window+tokens"))
    ratio = joint.seconds / alone.seconds if alone and joint else None
    text = f"{title(results)} + 4 sinks + 64 tokens, {case}: at most {TOKENS:g}x the time of the window alone"
    return Promise(text, ratio, kept=ratio is not None and ratio <= TOKENS)


def memory_ratio(results: Results) -> float | None:
    """Memory at its highest, inputs included, over that of q, k, v, the output and the gradients of all four."""
    config = results.config
    (length,) = config.lengths
    m = results.measurement(TRAINING, "window", length)
    tensor = config.heads * config.head_width * length * (2 if config.precision == "bf16" else 4)
    return (m.peak_bytes + 4 * tensor) / (8 * tensor) if m else None


def title(results: Results) -> str:
    config = results.config
    heads = f"{config.heads}:{config.key_heads}" if config.key_heads else f"{config.heads}"
    pattern = "the document's pattern" if "document" in config.contenders else f"window {config.window}"
    return f"{pattern}, {heads} × {config.head_width}"


def page(runs: Runs, verdicts: Sequence[Promise]) -> str:
    """The results as Markdown."""
    lines = ["# Attention on one H200", "", "Made by `benchmarks/h200_attention.py`. bf16, causal, cold L2 cache."]
    lines += ["", "## Promises", "", *verdict_rows(verdicts)]
    lines += ["", "## Beside the best peer", "", summary(results for group in runs.values() for results in group)]
    for name, group in runs.items():
        absent = sorted(
            {n for c in SECTIONS[name] for n in c.contenders} - {n for r in group for n in r.config.contenders}
        )
        note = [f"Left out of this run: {', '.join(absent)}.", ""] if absent else []
        lines += [f"## {name.capitalize()}", "", *note, *map(markdown, group)]
    return "\n".join(lines)


def without(names: Sequence[str], config: BenchConfig) -> BenchConfig:
    return replace(config, contenders=tuple(name for name in config.contenders if name not in names))


def compile_ahead(configs: Sequence[BenchConfig]) -> None:
    """Fill the compilers' caches on disk from several processes: every mask, window and shape is compiled by itself."""
    ahead = [
        replace(config, contenders=(name,), lengths=(length,), repeats=1, warmup=1)
        for config in configs
        for length in config.lengths
        for name in config.contenders
        if name in COMPILED and config.tokens
    ]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), initializer=in_one_thread) as pool:
        wait([pool.submit(run, config) for config in ahead])  # what fails here fails again where it is measured


def in_one_thread() -> None:
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    flags.add_argument("--without", nargs="+", choices=get_args(AttentionName), default=[])
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    runs = earlier(asked.folder)
    sections = {name: tuple(without(asked.without, config) for config in SECTIONS[name]) for name in asked.only}
    if asked.small:
        sections = {name: tuple(map(small, configs)) for name, configs in sections.items()}
    else:
        compile_ahead([config for configs in sections.values() for config in configs])
    for name, configs in sections.items():
        runs[name] = [run(config, on_outcome=partial(print, flush=True)) for config in configs]
        write(runs, asked.folder)  # after each section, so that a run cut short leaves what it has
    verdicts = list(promises(runs))
    print(page(runs, verdicts))
    return 0 if all(p.kept for p in verdicts) else 1


def earlier(folder: Path) -> Runs:
    """The sections that an earlier call has measured."""
    path = folder / f"{NAME}.json"
    sections = json.loads(path.read_text(encoding="utf-8"))["sections"] if path.is_file() else {}
    return {name: [Results.from_record(record) for record in records] for name, records in sections.items()}


def write(runs: Runs, folder: Path) -> None:
    runs = {name: runs[name] for name in SECTIONS if name in runs}
    verdicts = list(promises(runs))
    sections = {name: [results.record() for results in group] for name, group in runs.items()}
    record = {"sections": sections, "promises": [asdict(p) for p in verdicts]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / f"{NAME}.md").write_text(page(runs, verdicts), encoding="utf-8")
    save_bars([results for group in runs.values() for results in group], folder / f"{NAME}.png")
    for results in runs.get("document", ()):
        save_plot(results, folder / f"{NAME}_document.png")


if __name__ == "__main__":
    sys.exit(main())
