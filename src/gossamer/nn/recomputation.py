"""What a layer keeps for the backward, and what is computed there again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Result = TypeVar("Result")

Keeping = Callable[[], tuple[AbstractContextManager, AbstractContextManager]]
"""What `torch.utils.checkpoint.checkpoint` takes as its `context_fn`: it decides what is kept."""

OF_GOSSAMER = ("attend", "attend_blocks", "attend_indexed", "attend_runs", "lsh_attend", "top_keys")
OF_TORCH = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
KEPT = frozenset(
    [f"gossamer::{name}" for name in OF_GOSSAMER] + [f"aten::_scaled_dot_product_{name}" for name in OF_TORCH]
)
"""Operators whose outputs are small beside what they cost: softmax attention, its log-sum-exp, and chosen keys."""


def keeping_attention() -> tuple[AbstractContextManager, AbstractContextManager]:
    """A `context_fn` of `torch.utils.checkpoint.checkpoint` by which attention is never computed twice.

    Outputs and log-sum-exps of this library's operators, and of PyTorch's fused attention, are kept; all else is
    computed again in the backward. The results are the same bits.

    >>> import torch
    >>> layer = torch.nn.Linear(8, 8)
    >>> out = checkpoint(layer, torch.ones(1, 8), use_reentrant=False, context_fn=keeping_attention)
    """
    return create_selective_checkpoint_contexts(_kept)


def recomputed(function: Callable[..., Result], keeping: bool | Keeping) -> Callable[..., Result]:
    """The function, whose activations are computed again in the backward: all of them, or what `keeping` lets go."""
    if isinstance(keeping, bool):
        return partial(checkpoint, function, use_reentrant=False)
    return partial(checkpoint, function, use_reentrant=False, context_fn=keeping)


def _kept(context: Any, operator: Any, *inputs: Any, **settings: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator.name() in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
