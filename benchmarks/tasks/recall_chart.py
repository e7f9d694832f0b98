"""What everyone recalls, and how fast it was learned, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

BASELINE = "dense"


def save_chart(record: dict[str, Any], path: Path) -> None:
    """Draws the share found against the tested texts, and that of the hardest trained ones against time."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    tested, learned = figure.subplots(1, 2)
    for score in (each for each in record["scores"] if not each["fault"]):
        look = {"color": "black", "linestyle": "--", "zorder": 3} if score["mixer"] == BASELINE else {}
        tested.plot(
            record["tested"], [100 * share for share in score["right"]], marker="o", label=score["mixer"], **look
        )
        seconds, shares = zip(*score["curve"], strict=True) if score["curve"] else ((), ())
        learned.plot(seconds, [100 * share for share in shares], label=score["mixer"], **look)
    tested.set(xlabel="length:pairs", ylabel="values found, %", title="Texts that nobody has seen")
    learned.set(xlabel="seconds of training", ylabel="values found, %", title=f"Learning {record['trained'][-1]}")
    for axes in (tested, learned):
        axes.set_ylim(0, 103)
        axes.grid(alpha=0.3)
    tested.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
