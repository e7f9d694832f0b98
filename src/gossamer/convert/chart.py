"""The trade-off as a picture: kept mass against the share of dense pairs, and who got what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..plan import shortened
from .assignment import Assignment, cheapest, tradeoff

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 60
COLOURS = "viridis"


def save_chart(chosen: Assignment, path: str | Path) -> None:
    """Draw the curve over all budgets beside the map of layers and heads; the suffix of `path` chooses the format."""
    from matplotlib.figure import Figure

    layers, heads = chosen.choice.shape
    figure = Figure(figsize=(6.0 + max(4.0, 0.3 * heads), max(4.5, 0.25 * layers)), layout="constrained")
    curve, grid = figure.subplots(1, 2)
    _draw_curve(curve, chosen)
    _draw_map(grid, chosen)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_curve(axes: Axes, chosen: Assignment) -> None:
    """The assignments as a line, each candidate alone as a cross, the chosen assignment as a star."""
    measured = chosen.measured
    line = tradeoff(measured, np.linspace(cheapest(measured.share), 1, POINTS))
    axes.plot([one.share for one in line], [one.kept for one in line], label="a candidate for each head")
    alone = measured.share.mean(axis=0), measured.mass.mean(axis=(0, 1))
    axes.plot(*alone, "x", color="C7", label="one candidate for all heads")
    axes.plot(chosen.share, chosen.kept, "*", color="C3", markersize=13, label=f"budget {chosen.budget:g}")
    axes.set(xlabel="share of dense pairs", ylabel="kept mass of the average head", title="What a budget keeps")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _draw_map(axes: Axes, chosen: Assignment) -> None:
    """One cell a head, in its candidate's colour: from the cheapest, dark, to the dearest."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    order = np.argsort(chosen.measured.share.mean(axis=0), kind="stable")
    colours = colormaps[COLOURS](np.linspace(0, 1, len(order)))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    axes.imshow(colours[rank[chosen.choice]], aspect="auto", interpolation="nearest")
    used = [index for index in order if (chosen.choice == index).any()]
    labels = [shortened(chosen.measured.candidates[index]) for index in used]
    patches = [Patch(color=colours[rank[index]], label=label) for index, label in zip(used, labels, strict=True)]
    axes.set(xlabel="head", ylabel="layer", title="Each head's pattern")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=7)
