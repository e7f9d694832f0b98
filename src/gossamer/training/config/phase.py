"""Phases: stretches of a run with settings of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from .ranges import require, require_whole

Stage = Literal["dense", "warm_up", "sparse"]


@dataclass(frozen=True)
class PhaseConfig:
    """A stretch of a run with its own windows, stage, context, learning rate and batch (staged training).

    What a phase leaves open is as in the rest of the tree. Its learning rate grows in a linear warm-up and then
    stays, or falls along half a cosine to `final_share` of itself. The optimizer's state goes on from the phase before.
    """

    steps: int = 1000
    """Optimizer steps of this phase."""
    windows: tuple[int, ...] = ()
    """Window of each layer, from the bottom to the top. Empty: `model.windows`."""
    stage: Stage | None = None
    """Of a model with `model.indexer`: dense (attention to all keys, the indexers rest), warm_up (attention to all
    keys, the indexers alone learn) or sparse (attention to the chosen keys, all learn). None: sparse."""
    context_size: int | None = None
    """Tokens in a sequence. None: `model.context_size`, which none may exceed."""
    learning_rate: float | None = None
    """Highest learning rate of this phase. None: `optimizer.learning_rate`."""
    batch_size: int | None = None
    """Sequences in one optimizer step. None: `run.batch_size`."""
    gradient_accumulation: int | None = None
    """Pieces in which they pass through the model. None: `run.gradient_accumulation`."""
    warmup_steps: int = 0
    """Steps in which the learning rate grows from zero, counted from the start of this phase."""
    final_share: float = 1.0
    """Learning rate of the phase's last step, as a share of its highest; 1 keeps it constant."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        for name, least in (("steps", 1), ("warmup_steps", 0)):
            require_whole(self, name, least=least)
        for name in ("context_size", "batch_size", "gradient_accumulation"):
            if getattr(self, name) is not None:
                require_whole(self, name, least=1)
        if self.stage not in (None, *get_args(Stage)):
            raise ValueError(f"PhaseConfig: stage is {self.stage!r}; give one of {', '.join(get_args(Stage))}")
        if self.learning_rate is not None:
            require(self, "learning_rate", lambda rate: 0 < rate < math.inf, "a positive number")
        require(self, "final_share", lambda share: 0 <= share <= 1, "a share in [0, 1]")


class Phase(NamedTuple):
    """A phase with nothing left open: the fields of `PhaseConfig`."""

    steps: int
    windows: tuple[int, ...]
    stage: Stage | None
    context_size: int
    learning_rate: float
    batch_size: int
    gradient_accumulation: int
    warmup_steps: int
    final_share: float
