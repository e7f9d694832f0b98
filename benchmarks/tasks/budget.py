"""A budget of seconds, and a learning rate that follows how much of it is gone."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """So many seconds from now on; the same budget is the same time for everyone, however fast a step is.

    >>> Budget(0.0).share
    1.0
    """

    seconds: float
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self.began + self.seconds - time.perf_counter())

    @property
    def share(self) -> float:
        """How much of the budget is gone, from 0 to 1."""
        return 1.0 - self.left / self.seconds if self.seconds > 0 else 1.0

    def rest(self) -> Budget:
        """What is left, as a budget of its own."""
        return Budget(self.left)


def rate(step: int, share: float, *, highest: float, warmup_steps: int) -> float:
    """The learning rate of a step, from 1: a linear warm-up by steps, and half a cosine down by the budget's share.

    >>> rate(10, 0.0, highest=1.0, warmup_steps=10), rate(5, 0.0, highest=1.0, warmup_steps=10)
    (1.0, 0.5)
    """
    return highest * min(1.0, step / max(1, warmup_steps)) * (1 + math.cos(math.pi * share)) / 2
