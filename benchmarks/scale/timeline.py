"""A picture of one step's timeline: what a GPU computed, and when NCCL ran beside it.

python benchmarks/scale/timeline.py TRACE.json.gz PICTURE.png
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LANES = ("computes", "NCCL")
COLOURS = ("#4c78a8", "#f58518")


def drawn(trace: Path, picture: Path, *, steps: int = 3) -> None:
    """Draws the last of the steps that a trace of attention holds, from its first kernel to its last one."""
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("cat") == "kernel"]
    exchanges = sorted((event for event in events if event["name"].startswith("nccl")), key=lambda event: event["ts"])
    first = exchanges[len(exchanges) // steps * (steps - 1)]["ts"] - 100.0
    figure, axes = plt.subplots(figsize=(9, 1.8), dpi=160)
    for event in events:
        if event["ts"] + event["dur"] < first:
            continue
        lane = int(event["name"].startswith("nccl"))
        bar = ((event["ts"] - first) / 1e3, event["dur"] / 1e3)
        axes.broken_barh([bar], (lane - 0.4, 0.8), facecolors=COLOURS[lane], edgecolors="white", linewidth=0.3)
    axes.set_yticks(range(2), LANES)
    axes.set_ylim(1.6, -0.6)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("milliseconds")
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    drawn(Path(sys.argv[1]), Path(sys.argv[2]))
