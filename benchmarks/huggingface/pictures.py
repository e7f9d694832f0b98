"""Time and cache memory against the context, and block after block of the text without end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .prefill import PREFILL
from .promises import FLEX, OURS, SDPA
from .records import Endless, Race, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 2**20
WIDTH_INCHES, HEIGHT_INCHES = 5.4, 4.0
COLOURS = {name: f"C{number}" for number, name in enumerate((*OURS, *SDPA, *FLEX))}


def save_races(report: Report, path: Path) -> None:
    """Draws each race over several lengths, time above cache memory; all axes are logarithmic."""
    races = [race for race in report.races.values() if len(race.results.config.model.lengths) > 1]
    if not races:
        return
    figure = Figure(figsize=(WIDTH_INCHES * len(races), 2 * HEIGHT_INCHES), layout="constrained")
    grid = figure.subplots(2, len(races), squeeze=False)
    for (above, below), race in zip(grid.T, races, strict=True):
        _draw_times(above, race)
        _draw_caches(below, race)
    _save(figure, path)


def save_endless(endless: Endless, path: Path) -> None:
    """Draws what a token took and what was held, by the tokens written; both axes begin at nothing."""
    figure = Figure(figsize=(2 * WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    left, right = figure.subplots(1, 2)
    written = [endless.size * (number + 1) for number in range(len(endless.seconds))]
    left.plot(written, [1e3 * seconds for seconds in endless.seconds])
    left.set(title=f"time per token, means of {endless.size:,}", xlabel="tokens written", ylabel="ms")
    right.plot(written, [held / MIB for held in endless.held])
    right.set(title="memory besides the weights", xlabel="tokens written", ylabel="MiB")
    for axes in (left, right):
        axes.set_ylim(0, 1.2 * (axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1))
        axes.grid(alpha=0.3)
    _save(figure, path)


def _draw_times(axes: Axes, race: Race) -> None:
    for name in race.results.contenders(race.case):
        measured = race.results.measurements(race.case, name)
        _draw(axes, name, [m.length for m in measured], [1e3 * m.seconds for m in measured])
    _finish(axes, race, f"{race.case}: ms" if race.case == PREFILL else f"{race.case}: ms a token")


def _draw_caches(axes: Axes, race: Race) -> None:
    for name in race.results.contenders(race.case):
        lengths = sorted(length for who, length in race.held if who == name)
        _draw(axes, name, lengths, [race.held[name, length] / MIB for length in lengths])
    _finish(axes, race, "keys and values: MiB")


def _draw(axes: Axes, name: str, lengths: list[int], figures: list[float]) -> None:
    """Ours in full strokes."""
    stroke = "-" if name in OURS else "--"
    if lengths:
        axes.plot(lengths, figures, label=name, color=COLOURS[name], linestyle=stroke, marker="o", markersize=3)


def _finish(axes: Axes, race: Race, title: str) -> None:
    lengths = sorted(race.results.config.model.lengths)
    axes.set(title=title, xscale="log", yscale="log", xlabel="tokens of context")
    axes.set_xticks(lengths, labels=[f"{n:,}" for n in lengths], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
