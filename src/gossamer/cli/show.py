"""`gossamer show`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from ..patterns import parse
from ..patterns.base import require_integer
from ..plan import plan
from .flags import Command, WrongUsage, parsed

FEWEST_CELLS, MOST_CELLS = 8, 48


@dataclass(frozen=True, kw_only=True)
class Show(Command):
    """Draw a pattern in the terminal, queries downwards and keys to the right, and print its plan."""

    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN")]
    """Such as "Causal() & (Window(128) | Sinks(4))": & is and, | or, ~ not, .T exchanges queries and keys."""
    length: int = 256
    """Tokens in the sequence."""
    heads: int | None = None
    """Heads to plan for; by default one, or as many as a PerHead pattern names."""
    cells: int | None = None
    """Cells a side of the drawing; by default as many as fit the terminal, 48 at most."""

    def __post_init__(self) -> None:
        for name in ("length", "heads", "cells"):
            if getattr(self, name) is not None:
                require_integer("show", name, getattr(self, name), least=1)


def run(arguments: Sequence[str]) -> None:
    """Prints the drawing of each group of heads, and then the plan."""
    command = parsed(Show, arguments)
    try:
        pattern = parse(command.pattern)
        heads = command.heads or (pattern.head_cuts or (1,))[-1]
        made = plan(pattern, command.length, command.length, heads)
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    fitting = (shutil.get_terminal_size().columns - 2) // 2
    pattern.show(command.length, command.cells or max(FEWEST_CELLS, min(MOST_CELLS, fitting)))
    print(f"\n{made}")
