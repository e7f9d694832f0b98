"""How to compute a plan: the backends, in the order in which they are tried."""

from __future__ import annotations

from dataclasses import dataclass

from .dense import DENSE
from .hopper.backend import HOPPER
from .problem import Again, Backend, Layout, Problem, Repeating, Saved, Softmax, Unsupported
from .tiled import TILED
from .triton import DECODE, TRITON

__all__ = [
    "BACKENDS", "Again", "Backend", "Choice", "Layout", "Problem", "Repeating", "Saved", "Softmax", "Unsupported",
    "choose", "pick",
]  # fmt: skip

BACKENDS: tuple[Backend, ...] = (DENSE, HOPPER, DECODE, TRITON, TILED)
"""Dense attention stands first because it takes only what a sparse kernel could not do with less."""


@dataclass(frozen=True)
class Choice:
    """The backend that runs a problem, or None, and the reason of each one before it."""

    backend: Backend | None
    refusals: dict[str, str]

    def taken(self) -> Backend:
        """The backend.

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


def choose(problem: Problem, name: str | None = None) -> Choice:
    """The first backend that accepts the problem, or the one called `name`; nothing falls back silently.

    Raises:
        ValueError: There is no backend called `name`.
    """
    candidates = [backend for backend in BACKENDS if name in (None, backend.name)]
    if not candidates:
        known = ", ".join(backend.name for backend in BACKENDS)
        raise ValueError(f"backend is {name!r}; give one of: {known}, or None to let Gossamer choose")
    refusals = {}
    for backend in candidates:
        reason = backend.refuses(problem)
        if reason is None:
            return Choice(backend, refusals)
        refusals[backend.name] = reason
    return Choice(None, refusals)


def pick(problem: Problem, name: str | None = None) -> Backend:
    """The backend that `choose` finds.

    Raises:
        ValueError: There is no backend called `name`.
        Unsupported: The named backend, or every one, refuses; the message gives the reasons.
    """
    return choose(problem, name).taken()
