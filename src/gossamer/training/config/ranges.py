"""Numbers of a configuration that must lie in a range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...patterns.base import require_integer


def require(owner: Any, name: str, holds: Callable[[float], bool], wanted: str) -> None:
    """Refuse a field that is no number of which `holds` is true; `wanted` says in words what to give."""
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
        raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; give {wanted}")


def require_whole(owner: Any, name: str, *, least: int) -> None:
    """Make the field a plain integer, or refuse it where it is none or below `least`."""
    number = require_integer(type(owner).__name__, name, getattr(owner, name), least)
    object.__setattr__(owner, name, number)
