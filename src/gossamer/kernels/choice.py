"""Which of several ways to compute something is taken: the first that does not refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from .problem import Unsupported


class Named(Protocol):
    """A way that callers can ask for."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


Way = TypeVar("Way", bound=Named)


@dataclass(frozen=True)
class Choice(Generic[Way]):
    """The way that is taken, or None, and the reason of each one before it."""

    backend: Way | None
    refusals: dict[str, str]

    def taken(self) -> Way:
        """The way.

        Raises:
            Unsupported: Every one refuses; the message gives the reasons.
        """
        if self.backend is None:
            reasons = (f"\n  {name}: {reason}" for name, reason in self.refusals.items())
            raise Unsupported("no backend accepts this problem" + "".join(reasons))
        return self.backend

    def __str__(self) -> str:
        chosen = "none" if self.backend is None else self.backend.name
        return "".join([chosen, *(f"\n  not {name}: {reason}" for name, reason in self.refusals.items())])


def first_of(ways: Sequence[Way], refusal: Callable[[Way], str | None], name: str | None = None) -> Choice[Way]:
    """The first way without a `refusal`, or the one called `name`; nothing falls back silently.

    Raises:
        ValueError: There is no way called `name`.
    """
    candidates = [way for way in ways if name in (None, way.name)]
    if not candidates:
        known = ", ".join(way.name for way in ways)
        raise ValueError(f"backend is {name!r}; give one of: {known}, or None to let Gossamer choose")
    refusals = {}
    for way in candidates:
        reason = refusal(way)
        if reason is None:
            return Choice(way, refusals)
        refusals[way.name] = reason
    return Choice(None, refusals)
