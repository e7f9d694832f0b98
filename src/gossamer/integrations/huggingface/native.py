"""Models of transformers that choose their keys themselves: their attention is handed the choice, and keeps to it.

DeepSeek-V3.2 and its kin hand over `indices` [B, Q, n], MiniMax-M3 `block_indices` [B, G, Q, n], to every attention
but transformers' own two. They make their choice from a real mask, so they are given one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from .indexed import indexed_attention
from .selection import Selection

NAME = "gossamer_indexed"
"""What this attention is called in transformers; must hold none of its own names, which it looks for within."""

CHOICES = ("indices", "block_indices")
"""The keyword arguments that bring a choice."""


def register() -> None:
    """Makes the name known to transformers; again and again is as good as once."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def selects(model: nn.Module) -> bool:
    """Whether the model chooses keys itself and hands its choice to attention."""
    return any(_hands_over(module) for module in _choosing(model))


def selects_by_mask(model: nn.Module) -> bool:
    """Whether the model chooses keys itself and tells attention by the mask alone, for each pair."""
    indexers = any(name.rpartition(".")[2] == "indexer" for name, _ in model.named_modules())
    return indexers and not selects(model)


def _choosing(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if hasattr(module, "indexer"))


def _hands_over(module: nn.Module) -> bool:
    """Whether its forward passes an argument of that name on: the name is then among the constants of its code."""
    code = inspect.unwrap(type(module).forward).__code__
    names = [name for constant in code.co_consts for name in (constant if isinstance(constant, tuple) else (constant,))]
    return any(name in CHOICES for name in names if isinstance(name, str))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """(out [B, Q, H, Dv], no weights) of query [B, H, Q, D], key and value [B, G, K, D], as transformers asks."""
    if attention_mask is None:
        raise RuntimeError(
            f"{type(module).__name__} was called without a mask, and would see the future; switch the model with "
            f"gossamer.sparsify(model)"
        )
    softcap, sinks = others.get("softcap"), others.get("s_aux")
    selection = _selection(module, attention_mask, others)
    if selection is None:
        return _dense(module, (query, key, value), attention_mask, scaling, dropout, (softcap, sinks)), None
    sinks = None if sinks is None else sinks.flatten()
    return indexed_attention(
        query, key, value, selection, scaling=scaling, dropout=dropout, softcap=softcap, sinks=sinks
    ), None


def _selection(module: nn.Module, mask: Tensor, given: dict[str, Any]) -> Selection | None:
    """What the layer chose; None for one that sees all that its mask shows."""
    if given.get("indices") is not None:
        return Selection(given["indices"], mask=mask)
    if given.get("block_indices") is not None:
        return Selection(given["block_indices"], module.indexer.block_size, mask)
    return None


def _dense(
    module: nn.Module, states: tuple[Tensor, ...], mask: Tensor, scaling: float | None, dropout: float, extras: tuple
) -> Tensor:
    """Attention of a layer that chooses nothing: to all that its mask shows."""
    if any(extra is not None for extra in extras):
        raise RuntimeError(
            f"{type(module).__name__} chooses no keys and has sinks or a softcap; such layers run with attention 'eager'"
        )
    query, key, value = states
    seen = mask if mask.dtype == torch.bool else mask == 0
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=seen[..., : key.shape[2]], dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)


def _mask(**sizes: Any) -> Tensor:
    """The mask [B, 1, Q, K] that transformers' eager attention adds to scores: indexers of every version read it."""
    return AttentionMaskInterface()["eager"](**{**sizes, "allow_is_causal_skip": False})
