"""Measures what Gossamer promises for a window on a CPU, and says whether it holds.

    python benchmarks/cpu_window.py

The rivals are causal SDPA and local-attention (`pip install 'gossamer[peers]'`). Ten minutes on two cores.
Writes `results/cpu_window.json` and `results/cpu_window.md`. Exits with 1 if a promise is broken.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from gossamer.bench import BenchConfig, Measurement, Promise, Results, run, verdict_rows
from gossamer.bench.promises import number

RESULTS = Path(__file__).parent / "results"
FORWARD, TRAINING = "attention forward", "attention forward + backward"
SPEEDUPS = {4096: 4.0, 16384: 12.0}
LONG, LONG_GIB = 131072, 6.0

CONFIG = BenchConfig(
    cases=("forward", "training"),
    contenders=("sdpa", "window", "local-attention"),
    lengths=(1024, 2048, 4096, 8192, 16384),
    heads=12,
    head_width=64,
    window=256,
    repeats=5,
    seconds=240.0,
    precision="fp32",
    device="cpu",
    threads=2,
)
LONG_CONFIG = replace(CONFIG, cases=("training",), contenders=("window",), lengths=(LONG,), repeats=1)


def promises(results: Results, long: Results) -> Iterator[Promise]:
    """Every promise, with the figure that decides it."""
    for case in (FORWARD, TRAINING):
        for length, least in SPEEDUPS.items():
            ratio = faster(results, case, length, "sdpa")
            text = f"{case}, {length:,} tokens: at least {least:g}x SDPA"
            yield Promise(text, ratio, kept=(ratio or 0) >= least)
        for length in results.config.lengths:
            ratio = faster(results, case, length, "local-attention")
            text = f"{case}, {length:,} tokens: faster than local-attention"
            yield Promise(text, ratio, kept=(ratio or 0) > 1)
    gib = total_gib(long.measurement(TRAINING, "window", LONG))
    text = f"{TRAINING}, {LONG:,} tokens: at most {LONG_GIB:g} GiB, inputs included"
    yield Promise(text, gib, kept=gib is not None and gib <= LONG_GIB)


def faster(results: Results, case: str, length: int, rival: str) -> float | None:
    window = results.measurement(case, "window", length)
    return None if window is None else results.speedup(window, over=(rival,))


def total_gib(m: Measurement | None) -> float | None:
    """Peak memory above the inputs, plus the inputs: q, k, v and the output's gradient in fp32."""
    if m is None:
        return None
    return (m.peak_bytes + 4 * 4 * CONFIG.heads * CONFIG.head_width * m.length) / 2**30


def page(results: Results, verdicts: list[Promise]) -> str:
    """The results as Markdown."""
    machine, config = results.machine, results.config
    lines = [
        f"# Window {config.window} on a CPU",
        "",
        f"{config.heads} heads × {config.head_width}, {config.precision}, {config.threads} threads of "
        f"{machine.cpu}, {machine.cores} cores. PyTorch {machine.torch}, Gossamer {machine.gossamer}, "
        f"{results.date}. Milliseconds: median (fastest–slowest) of up to {config.repeats} calls, contenders "
        "in turns. Made by `benchmarks/cpu_window.py`.",
    ]
    for case in (FORWARD, TRAINING):
        lines += ["", f"## {case.capitalize()}", "", *rows(results, case)]
    lines += ["", "## Promises", "", *verdict_rows(verdicts)]
    return "\n".join(lines) + "\n"


def rows(results: Results, case: str) -> Iterator[str]:
    names = results.contenders(case)
    yield f"| tokens | {' | '.join(names)} | × SDPA | × local-attention | window's memory, MiB |"
    yield "|--:" * (len(names) + 4) + "|"
    for length in results.config.lengths:
        window = results.measurement(case, "window", length)
        times = [milliseconds(results.measurement(case, name, length)) for name in names]
        ratios = [number(faster(results, case, length, rival)) for rival in ("sdpa", "local-attention")]
        memory = number(None if window is None else window.peak_bytes / 2**20)
        yield f"| {length:,} | {' | '.join([*times, *ratios, memory])} |"


def milliseconds(m: Measurement | None) -> str:
    if m is None:
        return number(None)
    return f"{1e3 * m.seconds:.1f} ({1e3 * m.fastest:.1f}–{1e3 * m.slowest:.1f})"


def main() -> int:
    results = run(CONFIG, on_outcome=partial(print, flush=True))
    long = run(LONG_CONFIG, on_outcome=partial(print, flush=True))
    verdicts = list(promises(results, long))
    record = results.record() | {"long": long.record(), "promises": [asdict(p) for p in verdicts]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cpu_window.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "cpu_window.md").write_text(page(results, verdicts), encoding="utf-8")
    print(page(results, verdicts))
    return 0 if all(p.kept for p in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
