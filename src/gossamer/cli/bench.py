"""`gossamer bench`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from ..bench.config import BenchConfig
from .flags import Command, Unprefixed, parsed


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure sparse attention beside dense attention and other libraries, each checked first."""

    settings: Annotated[BenchConfig, Unprefixed] = field(default_factory=BenchConfig)


def run(arguments: Sequence[str]) -> None:
    """Prints a table a case, and leaves bench.json and bench.png in the folder."""
    settings = parsed(Bench, arguments).settings
    from ..bench import run as measure
    from ..bench import save_plot, tables
    from .screen import show_tables

    # A line as each result comes, beside the tables and not in them: a benchmark takes minutes.
    results = measure(settings, on_outcome=lambda outcome: print(outcome, file=sys.stderr))
    show_tables(tables(results))
    record, picture = settings.folder / "bench.json", settings.folder / "bench.png"
    results.save(record)
    save_plot(results, picture)
    print(f"written: {record}, {picture}")
