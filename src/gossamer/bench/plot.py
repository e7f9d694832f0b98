"""The results of a benchmark as a picture: time and memory against length, with the crossover marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .headings import setup
from .results import DENSE, NAIVE, RIVALS, Measurement, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, HEIGHT_INCHES = 5.4, 4.0
MIB = 2**20
PAGE = 4096  # the least that a resident set can grow; a logarithmic axis has no zero


def save_plot(results: Results, path: Path) -> None:
    """Draw every case, time above memory, all axes logarithmic; the suffix of `path` chooses the format."""
    from matplotlib.figure import Figure

    columns = len(results.cases)
    figure = Figure(figsize=(WIDTH_INCHES * columns, 2 * HEIGHT_INCHES), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for (above, below), case in zip(grid.T, results.cases, strict=True):
        above.set(title=case, ylabel="seconds a call (median)")
        below.set(ylabel="peak memory, MiB")
        for name in results.contenders(case):
            _draw_times(above, results, case, name)
            _draw_memory(below, results, case, name)
        lengths = sorted({m.length for m in results.measurements(case)})
        _finish(above, lengths)
        _finish(below, lengths)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def save_bars(runs: Sequence[Results], path: Path) -> None:
    """Draw the times of each run's cases at its longest length as bars, the physical floor as a mark in each."""
    from matplotlib.figure import Figure

    panels = [(results, case) for results in runs for case in results.cases if results.measurements(case)]
    bars = [len(_at_longest(results, case)) for results, case in panels]
    figure = Figure(figsize=(2 * WIDTH_INCHES, 0.3 * sum(bars) + 0.8 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[count + 1 for count in bars])
    for axes, (results, case) in zip(grid[:, 0], panels, strict=True):
        _draw_bars(axes, results, case)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw_bars(axes: Axes, results: Results, case: str) -> None:
    rows = _at_longest(results, case)[::-1]
    names, times = [m.contender for m in rows], [1e3 * m.seconds for m in rows]
    bars = axes.barh(names, times, color=["C0" if name in RIVALS else "C7" for name in names])
    axes.bar_label(bars, [f" {time:.3g} ms" for time in times], fontsize=8)
    for row, m in enumerate(rows):
        if m.work and results.ceilings:
            axes.plot([1e3 * m.work.floor(results.ceilings)] * 2, [row - 0.4, row + 0.4], color="black")
    axes.set_title(f"{case}, {rows[0].length:,} tokens ({setup(results, case)})", fontsize=9, loc="left")
    axes.set_xlim(0, 1.15 * max(times))
    axes.tick_params(labelsize=8)


def _at_longest(results: Results, case: str) -> list[Measurement]:
    measured = results.measurements(case)
    return [m for m in measured if m.length == measured[-1].length]


def _draw_times(axes: Axes, results: Results, case: str, name: str) -> None:
    """A line, and a star where it crosses below dense attention."""
    measured = results.measurements(case, name)
    crossover = results.crossover(case, name)
    label = name if crossover is None else f"{name} (★ {results.overtaking(case, name)})"
    lengths, times = [m.length for m in measured], [m.seconds for m in measured]
    colour, stroke = _look(results, name)
    if measured:
        axes.plot(lengths, times, label=label, color=colour, linestyle=stroke, marker="o", markersize=3)
    if crossover is not None:
        height = np.exp(np.interp(np.log(crossover), np.log(lengths), np.log(times)))
        axes.plot(crossover, height, marker="*", markersize=13, color=colour)
        axes.axvline(crossover, color=colour, linestyle=":", linewidth=0.8)


def _draw_memory(axes: Axes, results: Results, case: str, name: str) -> None:
    measured = results.measurements(case, name)
    sizes = [max(m.peak_bytes, PAGE) / MIB for m in measured]
    colour, stroke = _look(results, name)
    if measured:
        lengths = [m.length for m in measured]
        axes.plot(lengths, sizes, label=name, color=colour, linestyle=stroke, marker="o", markersize=3)


def _look(results: Results, name: str) -> tuple[str, str]:
    """Colour and stroke of a contender, the same in every picture; what computes all n² pairs is dashed."""
    names = list(dict.fromkeys(outcome.contender for outcome in results.outcomes))
    return f"C{names.index(name)}", "--" if name in (*DENSE, NAIVE) else "-"


def _finish(axes: Axes, lengths: list[int]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="tokens")
    axes.set_xticks(lengths, labels=[f"{n:,}" for n in lengths], rotation=45, fontsize=8)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if lengths:
        axes.legend(fontsize=8)
