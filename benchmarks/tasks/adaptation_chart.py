"""What indexers learn, and what it costs that they choose, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def save_chart(record: dict[str, Any], path: Path) -> None:
    """Draws KL divergence and recall over the steps of both stages, and the loss against the number of keys."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    divergence, found, swept = figure.subplots(1, 3)
    first = 0
    for curve in (each for each in record["curves"] if each["indexer_loss"]):
        steps = range(first + 1, first + len(curve["indexer_loss"]) + 1)
        divergence.semilogy(steps, curve["indexer_loss"], label=curve["stage"])
        places, shares = zip(*curve["recall"], strict=True)
        found.plot([first + step for step in places], shares, "o-", markersize=3, label=curve["stage"])
        first += len(curve["indexer_loss"])
    divergence.set(xlabel="step", ylabel="nats a query, mean over layers", title="KL of the indexers")
    found.set(
        xlabel="step", ylabel=f"recall@{record['indexer']['index_topk']}", title="Most looked at keys that are chosen"
    )
    rows = [row for row in record["sweep"] if not row.get("turned")]
    swept.semilogx([row["keys"] for row in rows], [row["loss"] for row in rows], "o-", label="not adapted", base=2)
    for number, (name, loss) in enumerate(record["losses"].items(), 1):
        swept.axhline(loss, linestyle="--", color=f"C{number}", linewidth=1, label=name)
    swept.set(xlabel="keys to a query", ylabel="test loss, nats a byte", title="What fewer keys cost")
    for axes in (divergence, found, swept):
        axes.grid(alpha=0.3)
    for axes in (divergence, swept):
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
