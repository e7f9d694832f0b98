"""Tables on the screen, in a file or in a pipe, with nothing cut off."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

WIDER_THAN_ANY_TABLE = 1000


def show_tables(tables: Iterable[Table]) -> None:
    """Prints the tables at their full width: on a narrow terminal lines wrap, and no cell loses its end."""
    roomy = Console(width=WIDER_THAN_ANY_TABLE)
    for table in tables:
        width = roomy.measure(table).maximum
        Console(width=max(width, Console().width)).print(table)
