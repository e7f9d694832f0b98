"""How to compute a plan: the backends, in the order in which they are tried."""

from __future__ import annotations

import logging

from .problem import Backend, Problem, Saved, Softmax, Unsupported
from .tiled import TILED

__all__ = ["BACKENDS", "Backend", "Problem", "Saved", "Softmax", "Unsupported", "pick"]

logger = logging.getLogger(__name__)

BACKENDS: tuple[Backend, ...] = (TILED,)


def pick(problem: Problem, name: str | None = None) -> Backend:
    """The first backend that accepts the problem, or the one called `name`; nothing falls back silently.

    Raises:
        ValueError: There is no backend called `name`.
        Unsupported: The named backend, or every one, refuses; the message gives the reasons.
    """
    candidates = [backend for backend in BACKENDS if name in (None, backend.name)]
    if not candidates:
        known = ", ".join(backend.name for backend in BACKENDS)
        raise ValueError(f"backend is {name!r}; give one of: {known}, or None to let Gossamer choose")
    reasons = []
    for backend in candidates:
        reason = backend.refuses(problem)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise Unsupported("no backend accepts this problem\n  " + "\n  ".join(reasons))
