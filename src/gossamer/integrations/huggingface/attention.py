"""The attention that transformers calls by Gossamer's name, and the mask that it needs none of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from ...nn.layer_cache import Scores
from .frame import Frame
from .layers import own_window

NAME = "gossamer"
"""What attention is called in transformers; must hold none of its own names, which it looks for within."""

FRAME = "gossamer_frame"
"""The keyword argument that brings the frame from the decoder to each layer's attention."""


def register() -> None:
    """Makes the name known to transformers; again and again is as good as once."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """(out [B, Q, H, D], no weights) of query [B, H, Q, D], key and value [B, G, K, D], as transformers asks."""
    frame = others.get(FRAME)
    if not isinstance(frame, Frame):
        raise RuntimeError(
            f"{type(module).__name__} was called without its frame: the name {NAME!r} alone is not enough; switch the "
            f"model with gossamer.sparsify(model, pattern), or a loaded one with gossamer.resparsify(model). If it was "
            f"switched, its layers do not hand keyword arguments on to attention: this family is not supported"
        )
    window = others.get("sliding_window")
    if window is not None and window != own_window(module):
        raise RuntimeError(
            f"{type(module).__name__} asks for a window of {window}, but was switched with {own_window(module)}; "
            f"this model family decides its window at each call, which is not supported"
        )
    scores = Scores(scaling, softcap, s_aux, dropout)
    out = frame.attend(query, key, value, layer=module.layer_idx, scores=scores)
    return out.transpose(1, 2).contiguous(), None  # some models take a view of it


def _mask(*, attention_mask: Tensor | None = None, **sizes: Any) -> Tensor | None:
    """What the caller knows of padding, as [B, 1, 1, K] bools: who sees whom is what the pattern says.

    `generate` makes masks ahead of the forward for some caches, which then brings this one instead of the flat one.
    """
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()


def flat(mask: Any) -> Tensor | None:
    """The mask [B, K] that the caller gave, or that `generate` had made of it.

    Raises:
        ValueError: It says more than padding.
    """
    if isinstance(mask, dict):  # one for each kind of layer, all alike
        mask = next(iter(mask.values()))
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return mask
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1:3] == (1, 1) and mask.dtype == torch.bool:
        return mask[:, 0, 0]
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise ValueError(
        f"attention_mask is {shape}; give [batch, tokens] of 1 for tokens and 0 for padding: who sees whom is what "
        f"the pattern says"
    )
