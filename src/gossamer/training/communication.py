"""What the processes of a run send each other so that all learn the same."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..models.gpt2 import GPT2
from .config import TrainConfig
from .distributed import World, gathered_in

FLOAT32 = 4  # bytes: of a number of a gradient, and of a weight outside the layers, whatever the precision


def learning_bytes(model: GPT2, config: TrainConfig, world: World, *, pieces: int) -> int:
    """Bytes that all processes together send in a step for weights and gradients, by rings.

    With ddp each gradient goes twice to all but one: once to be summed and once as the sum. With fsdp a layer's weights
    go to all but one for the forward and, with `reshard_after_forward`, once more for the backward, its gradients once;
    weights of no layer are gathered once. That is for each of the `pieces` of a batch, while ddp waits for the last
    one. The few numbers that all agree on in each step are left out, and what attention exchanges counts by itself.
    """
    others = world.size - 1
    if config.parallel.strategy == "ddp":
        return 2 * others * FLOAT32 * sum(each.numel() for each in model.parameters() if each.requires_grad)
    layers = _shared_out(model.h.parameters(), world.size)
    rest = _shared_out(model.parameters(), world.size) - layers
    of_layers = (1 + config.parallel.reshard_after_forward) * gathered_in(config, world.device).itemsize * layers
    return pieces * others * (of_layers + FLOAT32 * rest + FLOAT32 * (layers + rest))


def _shared_out(parameters: Iterable[nn.Parameter], processes: int) -> int:
    """Numbers in weights whose rows are shared out, every share as large as the largest."""
    return sum(-(-each.shape[0] // processes) * processes * (each.numel() // each.shape[0]) for each in parameters)
