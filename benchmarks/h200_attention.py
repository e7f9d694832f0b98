"""Measures what Gossamer promises of attention on one H200, beside every peer, and says whether it holds.

    python benchmarks/h200_attention.py [--only windows groups document tokens launch long decode]
                                        [--without flex fa4 ...] [--folder FOLDER] [--commit COMMIT] [--small]

The peers are cuDNN's and FlashAttention's dense kernels, FlexAttention and, where it is installed, FlashAttention-4
(`pip install --pre flash-attn-4`). Takes minutes, most of them compiling FlexAttention. `--only` runs some sections and
keeps what FOLDER holds of the others; `--without` leaves contenders out, and the page says so; `--commit` names the
code where its copy has no history; `--small` is a rehearsal that any machine can run. Writes `h200_attention.json` and
`.md` after each configuration, and two pictures at the end. Exits with 1 if a promise is broken.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

from h200_promises import Runs, promises

from gossamer.atomic import write_file
from gossamer.bench import (
    BenchConfig,
    Promise,
    Results,
    markdown,
    run,
    save_bars,
    save_plot,
    show_progress,
    summary,
    verdict_rows,
)  # fmt: skip
from gossamer.bench.config import AttentionName
from gossamer.machine import this_machine

RESULTS = Path(__file__).parent / "results"
NAME = "h200_attention"

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
GROUPED = {"heads": 32, "key_heads": 8, "head_width": 128}
SECTIONS: dict[str, tuple[BenchConfig, ...]] = {
    "windows": tuple(replace(BASE, **shape, window=window) for shape in (NARROW, WIDE) for window in (128, 256, 512)),
    "groups": (replace(BASE, **GROUPED, window=512),),
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
    "decode": tuple(
        replace(
            BASE,
            **shape,
            window=512,
            contenders=("sdpa", "flash", "window+strided"),
            tokens=None,
            batch=batch,
            lengths=(8192, 32768, 131072),
            repeats=20,
            cases=("decode",),
        )
        for shape in (NARROW, GROUPED)
        for batch in (1, 8, 64)
    ),
}

COMPILED = ("window", "document", "window+tokens", "flex", "flex-document", "flex-window+tokens")
PROCESSES = 12


def small(config: BenchConfig) -> BenchConfig:
    """The same rows at a size, and in a number format, that any machine can rehearse."""
    lengths = tuple(max(64, n // 256) for n in config.lengths)
    shape = {"heads": 6 if config.key_heads is None else 4, "head_width": 16, "window": config.window // 16}
    tokens, groups = config.tokens and 256, config.key_heads and 2
    rehearsal = {"repeats": 1, "warmup": 1, "precision": "fp32", "device": "cpu"}
    return replace(config, **shape, **rehearsal, lengths=lengths, tokens=tokens, key_heads=groups)


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
        if len(group) < len(SECTIONS[name]):
            note += [f"Cut short: {len(group)} of {len(SECTIONS[name])} configurations ran.", ""]
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
    ahead.sort(key=lambda config: "flex" not in config.contenders[0])  # the slowest ones first
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), initializer=in_one_thread) as pool:
        jobs = {pool.submit(run, config): config for config in ahead}
        for number, done in enumerate(as_completed(jobs), 1):
            (name,), (length,) = jobs[done].contenders, jobs[done].lengths
            wrong = f": {done.exception()}" if done.exception() else ""  # it fails again where it is measured
            print(f"compiled ahead, {number} of {len(jobs)}: {name}, {length:,} tokens{wrong}", flush=True)


def in_one_thread() -> None:
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    flags.add_argument("--without", nargs="+", choices=get_args(AttentionName), default=[])
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    show_progress()
    runs = earlier(asked.folder)
    sections = {name: tuple(without(asked.without, config) for config in SECTIONS[name]) for name in asked.only}
    if asked.small:
        sections = {name: tuple(map(small, configs)) for name, configs in sections.items()}
    else:
        compile_ahead([config for configs in sections.values() for config in configs])
    for name, configs in sections.items():
        measured: list[Results] = []
        for config in configs:
            results = run(config)
            measured.append(replace(results, machine=replace(results.machine, commit=asked.commit)))
            write(runs | {name: measured}, asked.folder)  # each time, so that a run cut short leaves what it has
        runs[name] = measured
    draw(runs, asked.folder)
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
    write_file(folder / f"{NAME}.json", f"{json.dumps(record, indent=1)}\n".encode())
    write_file(folder / f"{NAME}.md", page(runs, verdicts).encode())


def draw(runs: Runs, folder: Path) -> None:
    save_bars([results for name in SECTIONS for results in runs.get(name, ())], folder / f"{NAME}.png")
    for results in runs.get("document", ()):
        save_plot(results, folder / f"{NAME}_document.png")


if __name__ == "__main__":
    sys.exit(main())
