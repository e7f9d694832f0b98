"""What a benchmark has to show, and whether it did."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """A figure that must lie above (or, for memory, below) a limit; None where it could not be measured."""

    text: str
    measured: float | None
    kept: bool


def verdict_rows(promises: Iterable[Promise]) -> list[str]:
    """The promises as the lines of a Markdown table."""
    rows = [f"| {p.text} | {number(p.measured)} | {'yes' if p.kept else 'NO'} |" for p in promises]
    return ["| promise | measured | kept |", "|---|--:|---|", *rows]


def number(value: float | None) -> str:
    """Two decimals, or whole from 100 on."""
    return "not measured" if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"
