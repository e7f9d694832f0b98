"""The patterns that a head may be given, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..patterns import Causal, Pattern, Sinks, Strided, Window

WINDOWS = (64, 128, 256, 512, 1024, 2048)
SINKS = 4
STRIDES = (10, 64)
WINDOW_OF_STRIDES = 32


def default_candidates(context: int) -> tuple[Pattern, ...]:
    """Windows of 64 … 2048 below `context` with 4 sinks, every 64th and every 10th key with a small window, and all.

    >>> [f"{share:.2f}" for share in shares(default_candidates(256), 256)]
    ['0.46', '0.76', '0.25', '0.31', '1.00']
    """
    local = [Causal() & (Window(size) | Sinks(SINKS)) for size in WINDOWS if size < context]
    far = [Causal() & (Strided(every) | Window(WINDOW_OF_STRIDES)) for every in reversed(STRIDES)]
    return (*local, *far, Causal())


def shares(candidates: Sequence[Pattern], context: int, window: int | None = None) -> NDArray[np.float64]:
    """The exact share of causal attention's pairs that each candidate keeps, in a layer that slides over `window`."""
    return np.array([_share(dense(window) & candidate, context) for candidate in candidates])


def dense(window: int | None) -> Pattern:
    """What a layer of the dense model sees: everything before, or the window that it slides over by itself."""
    return Causal() if window is None else Causal() & Window(window)


def require_candidates(candidates: Sequence[Pattern]) -> tuple[Pattern, ...]:
    """The candidates, or an error where there is none or one is itself written for several heads.

    Raises:
        ValueError: As said.
    """
    if not candidates:
        raise ValueError("candidates is empty; give at least one pattern")
    for candidate in candidates:
        if not isinstance(candidate, Pattern):
            raise ValueError(f"candidates holds {candidate!r}; give patterns such as Causal() & Window(128)")
        if candidate.head_cuts:
            raise ValueError(f"candidates holds {candidate}, which differs between heads; give its groups one by one")
    return tuple(candidates)


@lru_cache(maxsize=1024)
def _share(pattern: Pattern, context: int) -> float:
    return pattern.density(context) / Causal().density(context)
