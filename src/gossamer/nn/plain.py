"""Layers of which the weights say all: they may be read where a call would cost more."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call computes what the weights of a linear layer say, and nothing else: no adapter, no hook."""
    return type(layer) is nn.Linear and "forward" not in vars(layer) and not any(getattr(layer, name) for name in HOOKS)
