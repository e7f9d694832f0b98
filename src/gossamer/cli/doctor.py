"""`gossamer doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from .flags import Command, parsed

if TYPE_CHECKING:
    from rich.table import Table

    from ..doctor import Finding


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Say what this machine has, which backend each feature will use on it, and why."""


def run(arguments: Sequence[str]) -> None:
    """Prints a table for each topic of the examination."""
    parsed(Doctor, arguments)
    from ..doctor import examine
    from .screen import show_tables

    show_tables(tables(examine()))


def tables(findings: Iterable[Finding]) -> Iterator[Table]:
    """The findings of each topic as a table: what was looked at, what was found, and why."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for topic, rows in groupby(findings, key=lambda finding: finding.topic):
        table = Table(title=topic, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
        for row in rows:
            table.add_row(*map(Text, (row.subject, row.answer, row.reason)))  # brackets are no markup
        yield table
