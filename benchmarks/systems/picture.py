"""The times of a run as bars."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from gossamer.bench import Results

from .promises import Runs

COLOURS = {"gossamer": "#1f6feb", "gossamer, half the window": "#79b8ff"}
RIVAL = "#9aa0a6"


def save(runs: Runs, path: Path) -> None:
    """Draws a panel for each case: milliseconds by length and contender."""
    panels = [(results, case) for results in runs.values() for case in results.cases]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 4), squeeze=False)
    for axis, (results, case) in zip(axes[0], panels, strict=True):
        draw(axis, results, case)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw(axis: plt.Axes, results: Results, case: str) -> None:
    found = results.measurements(case)
    names = [f"{m.contender}\n{m.length:,}" for m in found]
    times = [1e3 * m.seconds for m in found]
    bars = axis.barh(names, times, color=[COLOURS.get(m.contender, RIVAL) for m in found])
    axis.bar_label(bars, labels=[f"{time:.1f}" for time in times], padding=2, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_title(case, fontsize=10)
    axis.set_xlabel("ms")
    axis.tick_params(labelsize=8)
