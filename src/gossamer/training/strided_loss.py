"""How well a language model predicts a text when every token has a long past."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from ..models.gpt2 import GPT2, IGNORED_TARGET
from ..patterns.base import require_integer


@torch.no_grad()
def strided_loss(model: GPT2, tokens: Int64[Tensor, " T"], *, length: int, stride: int, batch_size: int = 1) -> float:
    """Mean loss (nats per token) over the last `stride` tokens of sequences that begin `stride` tokens apart.

    Each scored token is scored once, with at least `length - stride` tokens before it (Longformer, arXiv
    2004.05150, section 4.2: length 32,256 and stride 512). The first `length - stride` predictions of the text are
    scored by no sequence, nor is what remains at its end. Bits per byte are these nats over log 2.

    Args:
        tokens: The text, on any device; the model's is where it runs.
        batch_size: Sequences that run at a time.

    Raises:
        ValueError: `stride` exceeds `length`, or the text has no `length + 1` tokens.
    """
    require_integer("strided_loss", "length", length, least=1)
    require_integer("strided_loss", "batch_size", batch_size, least=1)
    if require_integer("strided_loss", "stride", stride, least=1) > length:
        raise ValueError(f"strided_loss: stride is {stride}; give at most length={length}")
    if len(tokens) <= length:
        raise ValueError(f"strided_loss: {len(tokens)} tokens hold no sequence of length={length} and the token after")
    sequences, device = tokens.unfold(0, length + 1, stride), model.wte.weight.device
    training, total, count = model.training, 0.0, 0
    model.eval()
    try:
        for some in sequences.split(batch_size):
            some = some.to(device)
            targets = some[:, 1:].clone()
            targets[:, : length - stride] = IGNORED_TARGET
            scored = len(some) * stride
            total += model(some[:, :-1].contiguous(), targets).loss.item() * scored
            count += scored
    finally:
        model.train(training)
    return total / count
