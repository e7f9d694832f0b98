"""An assignment as tables for a terminal: the candidates, the layers, and what other budgets would keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from ..plan import shortened
from .assignment import Assignment

BUDGETS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)


def tables(chosen: Assignment, curve: Iterable[Assignment]) -> list[Table]:
    """What each candidate keeps, what each layer gets, and the trade-off at the budgets of `curve`."""
    return [_candidates(chosen), _layers(chosen), _tradeoff(chosen, curve)]


def _candidates(chosen: Assignment) -> Table:
    measured = chosen.measured
    table = _table(
        f"Candidates, at {measured.context:,} tokens", ["", "pattern", "share of dense", "kept mass", "lowest", "heads"]
    )
    for index, candidate in enumerate(measured.candidates):
        mass = measured.mass[:, :, index]
        heads = f"{(chosen.choice == index).sum():,}"
        pattern = Text(shortened(candidate))  # as text: brackets are no markup
        share = measured.share[:, index].mean()
        table.add_row(f"#{index + 1}", pattern, _percent(share), _percent(mass.mean()), _percent(mass.min()), heads)
    return table


def _layers(chosen: Assignment) -> Table:
    numbers = range(len(chosen.measured.candidates))
    headings = ["layer", *(f"#{number + 1}" for number in numbers), "share of dense", "kept mass", "lowest"]
    table = _table(f"Heads of each candidate, at a budget of {_percent(chosen.budget)}", headings)
    for layer, choice in enumerate(chosen.choice):
        counts = [str(count) if count else "" for count in np.bincount(choice, minlength=len(numbers))]
        mass, share = chosen.mass[layer], chosen.shares[layer]
        table.add_row(str(layer), *counts, _percent(share.mean()), _percent(mass.mean()), _percent(mass.min()))
    table.add_section()
    counts = [str(count) for count in np.bincount(chosen.choice.ravel(), minlength=len(numbers))]
    table.add_row("all", *counts, _percent(chosen.share), _percent(chosen.kept), _percent(chosen.mass.min()))
    return table


def _tradeoff(chosen: Assignment, curve: Iterable[Assignment]) -> Table:
    table = _table("What a budget keeps", ["budget", "share of dense", "kept mass", "lowest head", "at most behind"])
    others = [one for one in curve if one.budget != chosen.budget]
    for one in sorted([*others, chosen], key=lambda one: one.budget):
        mark = " ←" if one is chosen else ""
        cells = one.share, one.kept, one.mass.min(), one.behind
        table.add_row(f"{_percent(one.budget)}{mark}", *map(_percent, cells))
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "pattern") else "right", no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
