"""What the encoders of transformers and ours are compared by: names of targets and logits there, and distances."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def largest(a: Tensor, b: Tensor) -> float:
    """Difference."""
    return (a - b).abs().max().item()


def as_theirs(head: str, targets: Tensor) -> dict[str, Tensor]:
    """Targets of a head of ours as arguments of theirs."""
    if head == "question_answering":
        return {"start_positions": targets[:, 0], "end_positions": targets[:, 1]}
    return {"labels": targets}


def logits_of(head: str, output) -> Tensor:
    """Their logits as ours are laid out."""
    if head == "question_answering":
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits


def gradients(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Those of a model's loss, by the parameter's name."""
    model.zero_grad()
    model(*inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
