"""How a run is spread over processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .ranges import require, require_whole

Strategy = Literal["ddp", "fsdp"]
Exchange = Literal["keys", "heads"]


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes that torchrun starts share the work. None of it changes what is learned.

    A run may be resumed with other settings of this branch, and on another number of processes.
    """

    strategy: Strategy = "ddp"
    """ddp (every process holds the whole model and averages gradients) or fsdp (FSDP2: each holds a share of the
    weights, gradients and optimizer, and gathers a layer's weights when it runs)."""
    context: int = 1
    """Processes that share one sequence, each a stretch of its tokens. It divides the number of processes; the rest
    of them share the batch."""
    exchange: Exchange = "keys"
    """What those that share a sequence send each other: keys (the keys and values that their queries read) or heads
    (all tokens of a share of the heads: Ulysses)."""
    reshard_after_forward: bool = True
    """With fsdp: give a layer's gathered weights back after its forward, and gather them again in the backward: less
    memory, half as much communication again."""
    offload: bool = False
    """With fsdp: weights, gradients and optimizer live in the CPU's memory: far less memory on the GPU, far slower."""
    timeout_seconds: float = 600.0
    """How long a process waits for the others before it gives up."""

    def __post_init__(self) -> None:
        for name, known in (("strategy", get_args(Strategy)), ("exchange", get_args(Exchange))):
            if getattr(self, name) not in known:
                raise ValueError(f"ParallelConfig: {name} is {getattr(self, name)!r}; give one of {', '.join(known)}")
        require_whole(self, "context", least=1)
        require(self, "timeout_seconds", lambda seconds: 0 < seconds < math.inf, "a positive number of seconds")
        if self.strategy != "fsdp" and self.offload:
            raise ValueError("ParallelConfig: offload is of fsdp; give strategy='fsdp' too, or leave it out")
