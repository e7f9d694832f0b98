"""Models of transformers that choose their keys themselves: their attention is handed the choice, and keeps to it.

DeepSeek-V3.2 and its kin hand over `indices` [B, Q, n], MiniMax-M3 `block_indices` [B, G, Q, n], to every attention
but transformers' own two. They make their choice from a real mask, so they are given one.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ...selectors.selection import Selection
from .choosing import selects, selects_by_mask
from .indexed import indexed_attention
from .layers import KEY, Unswitchable, require_text_alone

Model = TypeVar("Model", bound=PreTrainedModel)

NAME = "gossamer_indexed"
"""What this attention is called in transformers; must hold none of its own names, which it looks for within."""


def keep_to_choice(model: Model) -> Model:
    """The model itself, whose attention computes the pairs that the model chooses and no others.

    Raises:
        Unswitchable: The model chooses no keys, or does not hand its choice to attention.
    """
    name, config = type(model).__name__, model.config
    require_text_alone(model)
    if selects_by_mask(model):
        raise Unswitchable(f"{name} says the keys that it chooses in its mask alone, so no work can be left out")
    if not selects(model):
        raise Unswitchable(
            f"{name} chooses no keys itself; give a pattern: sparsify(model, Causal() & (Window(1024) | Sinks(4)))"
        )
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    saved: Any = getattr(config, KEY, None)
    replaced = saved["replaced"] if is_own_choice(saved) else config._attn_implementation
    model.set_attn_implementation(NAME)
    setattr(config, KEY, {"choice": "model", "replaced": replaced})
    return model


def forget_choice(model: Model) -> Model:
    """The model itself, with the attention that it had before; it chooses as it did."""
    model.set_attn_implementation(getattr(model.config, KEY)["replaced"])
    delattr(model.config, KEY)
    return model


def is_own_choice(saved: object) -> bool:
    """Whether that is what a configuration says of a model that keeps to its own choice."""
    return isinstance(saved, dict) and saved.get("choice") == "model"


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
    indexer: Any = getattr(module, "indexer", None)
    if given.get("indices") is not None:
        return Selection(given["indices"], mask=mask)
    if given.get("block_indices") is not None:
        return Selection(given["block_indices"], indexer.block_size, mask=mask)
    return None


def _dense(
    module: nn.Module, states: tuple[Tensor, ...], mask: Tensor, scaling: float | None, dropout: float, extras: tuple
) -> Tensor:
    """Attention of a layer that chooses nothing: to all that its mask shows."""
    if any(extra is not None for extra in extras):
        raise RuntimeError(
            f"{type(module).__name__} chooses no keys and has sinks or a softcap; densify(model) runs such layers"
        )
    query, key, value = states
    seen = mask if mask.dtype == torch.bool else mask == 0
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=seen[..., : key.shape[2]], dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)


def _mask(**sizes: Any) -> Tensor:
    """The mask [B, 1, Q, K] that transformers' eager attention adds to scores: indexers of every version read it."""
    return AttentionMaskInterface()["eager"](**sizes)
