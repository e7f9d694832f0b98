"""Layers of which the weights say all: they may be read where a call would cost more."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call computes what the weights of a linear layer say, and nothing else: no adapter, no hook."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)
