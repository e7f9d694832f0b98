"""Several linear layers of one input as one: one product for all, and one sum for the gradient of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call computes what the weights say, and nothing else: no adapter, no hook."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


def projected(x: Float[Tensor, "B N E"], layers: Sequence[nn.Module]) -> Sequence[Float[Tensor, "B N E"]]:
    """What each layer makes of `x`.

    Where all are plain and there is more to multiply than weights to copy, their weights stand one below the other and
    are read, and no layer is called: the results are slices of one tensor.
    """
    plain = [layer for layer in layers if is_plain(layer)]
    if x.shape[:2].numel() < x.shape[2] or len(plain) < len(layers):
        return [layer(x) for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in plain if layer.bias is not None]
    weight, bias = torch.cat([layer.weight for layer in plain]), torch.cat(biases) if biases else None
    return F.linear(x, weight, bias).chunk(len(layers), 2)
