"""FlexAttention over our pattern, as its documentation and that of transformers say how: the sparse rival."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import flex_attention as uncompiled_flex
from transformers import AttentionInterface, AttentionMaskInterface

from gossamer.bench.peers import FlexMask, flex_mask

BY_BLOCKS = "pattern_by_blocks"
"""What transformers calls it."""
BLOCK = 128


def register(window: int, sinks: int) -> None:
    """Makes it known to transformers, for one pattern at a time."""
    AttentionInterface.register(BY_BLOCKS, flex_by_blocks)
    AttentionMaskInterface.register(BY_BLOCKS, partial(mask_by_blocks, window=window, sinks=sinks))


def flex_by_blocks(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    *,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """FlexAttention over the blocks of the mask; by a kernel of its own, or as a part of what compiles it."""
    inside = query.is_cpu or torch.compiler.is_compiling()
    flex = uncompiled_flex if inside else _compiled_flex()
    out = flex(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(uncompiled_flex, dynamic=False)


def flex_window_and_sinks(window: int, sinks: int) -> FlexMask:
    """`Causal() & (Window(window) | Sinks(sinks))` as a user of FlexAttention writes it."""

    def in_window_or_sink(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & ((query - key < window) | (key < sinks))

    return in_window_or_sink


def mask_by_blocks(
    *,
    window: int,
    sinks: int,
    q_length: int,
    kv_length: int,
    device: torch.device,
    q_offset: int | Tensor = 0,
    **others: Any,
) -> BlockMask:
    """The blocks of one new token behind the others, or of a whole text, which are found once for each length."""
    if q_length == 1:
        return row_mask(window, sinks, q_offset, kv_length, device)
    if q_length != kv_length:
        raise ValueError(f"{q_length} queries stand over {kv_length} keys; give a whole text, or one token at a time")
    return whole_mask(window, sinks, q_length, device)


@lru_cache(maxsize=4)
def whole_mask(window: int, sinks: int, length: int, device: torch.device) -> BlockMask:
    """The blocks of a whole text."""
    return flex_mask(flex_window_and_sinks(window, sinks), length, None, device)


def row_mask(window: int, sinks: int, position: int | Tensor, keys: int, device: torch.device) -> BlockMask:
    """The blocks of the query at `position`, which the device alone may know, over a cache with room for `keys`."""
    # A copy: the cache counts on in place before the kernel reads.
    at = torch.as_tensor(position, device=device).clone()
    first = torch.arange(0, keys, BLOCK, device=device)
    seen = (first <= at) & ((first + BLOCK > at - window + 1) | (first < sinks))
    sees = flex_window_and_sinks(window, sinks)

    def in_row(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(batch, head, query + at, key)

    return BlockMask.from_kv_blocks(
        seen.sum(dtype=torch.int32)[None, None, None],
        seen.int().argsort(descending=True, stable=True).int()[None, None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=in_row,
        seq_lengths=(1, keys),
        compute_q_blocks=False,
    )
