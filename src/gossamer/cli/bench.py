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
    """Prints a table a case, and leaves bench.json, bench.md and bench.png in the folder."""
    settings = parsed(Bench, arguments).settings
    from ..bench import markdown, save_plot, tables
    from ..bench import run as measure
    from .screen import show_tables

    # A line as each result comes, beside the tables and not in them: a benchmark takes minutes.
    results = measure(settings, on_outcome=lambda outcome: print(outcome, file=sys.stderr))
    show_tables(tables(results))
    record, page, picture = (settings.folder / f"bench.{suffix}" for suffix in ("json", "md", "png"))
    results.save(record)
    page.write_text(markdown(results), encoding="utf-8")
    save_plot(results, picture)
    print(f"written: {record}, {page}, {picture}")
