"""How weights are changed, and how fast over the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .ranges import require, require_whole


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019); weight decay acts on matrices and not on biases or norms."""

    learning_rate: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    weight_decay: float = 0.1
    """Share of a weight, times the learning rate, that is taken off in each step."""
    beta1: float = 0.9
    """Decay of the running mean of the gradients."""
    beta2: float = 0.95
    """Decay of the running mean of their squares."""
    epsilon: float = 1e-8
    """Added to the root of the mean square."""
    gradient_clip: float = 1.0
    """Longest gradient; a longer one is shortened to it. inf never shortens."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon"):
            require(self, name, lambda size: 0 < size < math.inf, "a positive number")
        for name in ("beta1", "beta2"):
            require(self, name, lambda decay: 0 <= decay < 1, "a share in [0, 1)")
        require(self, "weight_decay", lambda decay: 0 <= decay < math.inf, "0 or a positive number")
        require(self, "gradient_clip", lambda length: length > 0, "a positive number, or inf for no clipping")


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter, 2017, without restarts)."""

    warmup_steps: int = 50
    """Steps in which the learning rate grows from zero to its highest value."""
    final_share: float = 0.1
    """The last step's learning rate, as a share of the highest."""

    def __post_init__(self) -> None:
        require_whole(self, "warmup_steps", least=0)
        require(self, "final_share", lambda share: 0 <= share <= 1, "a share in [0, 1]")
