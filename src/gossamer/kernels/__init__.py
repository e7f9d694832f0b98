"""How to compute a plan: the backends, in the order in which they are tried."""

from __future__ import annotations

from .choice import Choice, first_of
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


def choose(problem: Problem, name: str | None = None) -> Choice[Backend]:
    """The first backend that accepts the problem, or the one called `name`; nothing falls back silently.

    Raises:
        ValueError: There is no backend called `name`.
    """
    return first_of(BACKENDS, lambda backend: backend.refuses(problem), name)


def pick(problem: Problem, name: str | None = None) -> Backend:
    """The backend that `choose` finds.

    Raises:
        ValueError: There is no backend called `name`.
        Unsupported: The named backend, or every one, refuses; the message gives the reasons.
    """
    return choose(problem, name).taken()
