"""The results of a benchmark as a picture: time and memory against length, with the crossover marked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .results import DENSE, NAIVE, Results

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
