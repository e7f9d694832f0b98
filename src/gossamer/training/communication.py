"""What the processes of a run send each other so that all learn the same."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..models.gpt2 import GPT2
from .config import TrainConfig

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SUMMED = 4  # bytes of a number of a gradient: in float32, whatever the precision


def learning_bytes(model: GPT2, config: TrainConfig, *, processes: int, pieces: int) -> int:
    """Bytes that all processes together send in a step for weights and gradients, by rings.

    With ddp each gradient goes twice to all but one: once to be summed and once as the sum. With fsdp a layer's weights
    go to all but one for the forward and, with `reshard_after_forward`, once more for the backward, its gradients once;
    those of no layer are gathered once. That is for each of the `pieces` of a batch, while ddp waits for the last one.
    The handful of numbers that all agree on in each step is left out, and what attention exchanges counts by itself.
    """
    to_others = processes - 1
    if config.parallel.strategy == "ddp":
        learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return 2 * to_others * SUMMED * learned
    layers = _shared_out(model.h.parameters(), processes)
    rest = _shared_out(model.parameters(), processes) - layers
    gathers = 1 + config.parallel.reshard_after_forward
    gathered = gathers * BYTES[config.run.precision] * layers + BYTES["fp32"] * rest
    return pieces * to_others * (gathered + SUMMED * (layers + rest))


def _shared_out(parameters: Iterable[nn.Parameter], processes: int) -> int:
    """Numbers in weights whose rows are shared out, every share as large as the largest."""
    return sum(
        -(-parameter.shape[0] // processes) * processes * (parameter.numel() // parameter.shape[0])
        for parameter in parameters
    )
