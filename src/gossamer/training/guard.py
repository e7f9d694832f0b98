"""Which steps are not taken, so that one bad batch does not spoil the weights for good."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from .config import GuardConfig


class Guard:
    """Judges each step by its losses and by the lengths of its gradients, before a weight changes.

    What it decides follows from these numbers alone: processes that have the same ones decide the same.

    >>> guard = Guard(GuardConfig(spike_factor=10, spike_window=3))
    >>> [guard.fault({"loss": 2.0}, {"gradient_norm": norm}) for norm in (1.0, 1.5, 0.5, 12.0, 2.0)]
    [None, None, None, 'gradient_norm is 12, over 10 times the median of the last 3 (1)', None]
    >>> guard.fault({"loss": float("nan")}, {"gradient_norm": 1.0}), guard.skips
    ('loss is nan', 1)

    Attributes:
        skips: Steps with a fault since the last one without.
    """

    def __init__(self, config: GuardConfig):
        self._config, self._phase, self._norms = config, 0, {}
        self.skips = 0

    def enter(self, phase: int) -> None:
        """Judge the steps of `phase` by each other only: another one has other gradients."""
        if phase != self._phase:
            self._phase, self._norms = phase, {}

    def fault(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> str | None:
        """Why the step must not be taken, or None; then its gradients are among those that later ones are judged by."""
        why = _not_finite({**losses, **norms}) or self._spike(norms)
        self.skips = 0 if why is None else self.skips + 1
        if why is None:
            for name, norm in norms.items():
                self._norms.setdefault(name, deque(maxlen=self._config.spike_window)).append(norm)
        return why

    @property
    def is_exhausted(self) -> bool:
        """Whether more steps in a row were left out than may be."""
        return self.skips > self._config.most_skips

    def state_dict(self) -> dict[str, Any]:
        """What `fault` remembers, as JSON can hold it."""
        return {"skips": self.skips, "phase": self._phase, "norms": {n: list(seen) for n, seen in self._norms.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.skips, self._phase = state_dict["skips"], state_dict["phase"]
        window = self._config.spike_window
        self._norms = {name: deque(seen, maxlen=window) for name, seen in state_dict["norms"].items()}

    def _spike(self, norms: Mapping[str, float]) -> str | None:
        factor, window = self._config.spike_factor, self._config.spike_window
        for name, norm in norms.items():
            seen = self._norms.get(name, ())
            if len(seen) < window or (usual := statistics.median(seen)) == 0:  # these weights did not learn so far
                continue
            if norm > factor * usual:
                return f"{name} is {norm:.4g}, over {factor:g} times the median of the last {window} ({usual:.4g})"
        return None


def _not_finite(numbers: Mapping[str, float]) -> str | None:
    return next((f"{name} is {number}" for name, number in numbers.items() if not math.isfinite(number)), None)
