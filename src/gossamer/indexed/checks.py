"""What is asked of a choice of keys, and of what goes with it, before anything is computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..inputs import holds
from ..selectors.selection import Selection


def check_selection(selection: Selection, q: Tensor, k: Tensor) -> None:
    """Raises a ValueError for what chooses no keys of `k` [B, G, K, D] for queries `q` [B, H, Q, D]."""
    if not isinstance(selection, Selection):
        raise ValueError(f"selection is a {type(selection).__name__}; give Selection(indices)")
    indices, block_size = selection.indices, selection.block_size
    (batch, _, queries, _), (_, key_heads, keys, _) = q.shape, k.shape
    runs = indices.shape[1] if indices.ndim == 4 else 0
    fits = runs > 0 and key_heads % runs == 0 and (indices.shape[0], indices.shape[2]) == (batch, queries)
    if not fits or indices.dtype not in (torch.int32, torch.int64) or indices.device != q.device:
        raise ValueError(
            f"indices is {indices.dtype} of shape {tuple(indices.shape)} on {indices.device}; give int32 or int64 of "
            f"[{batch}, N, {queries}, n] on {q.device}, where N divides the {key_heads} key heads"
        )
    if isinstance(block_size, bool) or not isinstance(block_size, int | torch.SymInt) or block_size < 1:
        raise ValueError(f"block_size is {block_size!r}; give an integer of at least 1")
    if selection.mask is not None:
        _check_mask(selection.mask, indices, keys)


def _check_mask(mask: Tensor, indices: Tensor, keys: int) -> None:
    batch, runs, queries, _ = indices.shape
    shape = tuple(mask.shape)
    fits = len(shape) == 4 and shape[0] in (1, batch) and shape[1] in (1, runs) and shape[2] in (1, queries)
    if not fits or shape[3] < keys or mask.device != indices.device:
        raise ValueError(
            f"mask is of shape {shape} on {mask.device}; give [{batch}, 1, {queries}, {keys}] on {indices.device}, or "
            f"1 in place of the first or the third"
        )


def check_sinks(sinks: Tensor | None, q: Tensor) -> None:
    """Raises a ValueError for what is not one logit for each head of `q` [B, H, Q, D]."""
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.device != q.device):
        raise ValueError(
            f"sinks has shape {tuple(sinks.shape)} on {sinks.device}; give one logit for each of the {q.shape[1]} "
            f"query heads, on {q.device}"
        )


def check_some_keys(k: Tensor, q: Tensor) -> None:
    """Raises a ValueError where queries have no key to choose."""
    if k.shape[-2] == 0 and q.shape[-2] > 0:
        raise ValueError(f"k has shape {tuple(k.shape)}; give at least 1 key to choose from")


def check_settings(dropout: float, softcap: float | None) -> None:
    """Raises a ValueError for settings of the softmax that are none."""
    if not holds(lambda x: 0.0 <= x < 1.0, dropout):
        raise ValueError(f"dropout is {dropout!r}; give a probability of at least 0 and below 1")
    if softcap is not None and not holds(lambda x: 0.0 < x < math.inf, softcap):
        raise ValueError(f"softcap is {softcap!r}; give a positive number, or None for no cap")
