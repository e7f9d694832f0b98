"""How a command's frozen dataclass becomes its flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import tyro

Kind = TypeVar("Kind")
Unprefixed = tyro.conf.arg(name="")
"""Marks a tree of settings whose flags carry their names within the tree, and nothing before them."""


class WrongUsage(Exception):
    """The command line asks for something that makes no sense; the message says what, and what to write."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command takes."""

    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Log what was planned and which kernel ran, and show where a failure happened."""


def parsed(kind: type[Kind], arguments: Sequence[str], *, default: Kind | None = None) -> Kind:
    """The command that the arguments describe; flags that are absent keep their value in `default`.

    Raises:
        SystemExit: 0 after `--help`; 2, with a message, where a flag is unknown or its value malformed.
        WrongUsage: The values are out of their range, or do not fit each other.
    """
    program, config = f"gossamer {kind.__name__.lower()}", (tyro.conf.AvoidSubcommands,)
    try:
        return tyro.cli(kind, prog=program, args=list(arguments), default=default, config=config)
    except ValueError as error:
        raise WrongUsage(str(error)) from error
