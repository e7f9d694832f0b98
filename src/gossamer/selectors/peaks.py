"""Blocks chosen by their highest token: by an index branch's scores (MSA), or by attention's own shares (HySparse)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from .block_topk import BlockTopK, positions_of, query_chunks
from .selection import Selection

MSA = BlockTopK(size=128, count=16, first=0, local=1)
"""The blocks of MiniMax-M3 (arXiv 2606.13392)."""


@torch.no_grad()
def highest_score_selection(
    q: Float[Tensor, "B N Q D"], k: Float[Tensor, "B K D"], choice: BlockTopK = MSA
) -> Selection:
    """For each query of each index head the blocks in which one token's score is highest (MSA, arXiv 2606.13392).

    A score is the product of an index query and the index key that all heads share; a block has that of its highest
    token at or before the query. All scores of one run of queries are held, never those of all. No gradient.

    >>> q, k = torch.ones(1, 1, 6, 1), torch.tensor([[[0.0], [9.0], [1.0], [2.0], [0.0], [0.0]]])
    >>> highest_score_selection(q, k, BlockTopK(size=2, count=2)).indices[0, 0, -1].tolist()
    [0, 2]
    """
    (batch, heads, queries, _), keys = q.shape, k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    positions = positions_of(queries, keys, q.device)
    of_keys = k[:, None].to(wide).mT  # [B, 1, D, K]
    found = []
    for part in query_chunks(queries, batch * heads * keys):
        begun = keys - queries + part.stop  # keys after the last of these queries are not looked at
        scores = q[:, :, part].to(wide) @ of_keys[..., :begun]
        scores = scores.masked_fill(_after(positions[part], begun), -torch.inf)
        found.append(choice.choose(_highest_of_blocks(scores, keys, choice), positions[part]))
    return Selection(torch.cat(found, 2), block_size=choice.size, causal=True)


@torch.no_grad()
def highest_share_selection(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    lse: Float[Tensor, "B H Q"],
    choice: BlockTopK,
    *,
    scale: float | None = None,
) -> Selection:
    """For each query of each key head the blocks in which one token gets most of a head (HySparse, arXiv 2602.03560).

    A token's share is its probability in causal attention of q to k, made anew from the log-sum-exp; a block has the
    highest share that any query head of the key head gives to one of its tokens. All shares of one run of queries are
    held, never those of all. No gradient.

    Args:
        lse: Log-sum-exp of that attention, sinks included where it has some.
        scale: Factor on the scores; 1/sqrt(D) by default.
    """
    (batch, heads, queries, width), (groups, keys) = q.shape, k.shape[1:3]
    scale = width**-0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    positions = positions_of(queries, keys, q.device)
    q, lse = q.unflatten(1, (groups, -1)), lse.unflatten(1, (groups, -1)).to(wide)
    of_keys = k[:, :, None].to(wide).mT  # [B, G, 1, D, K]
    found = []
    for part in query_chunks(queries, batch * heads * keys):
        begun = keys - queries + part.stop  # keys after the last of these queries are not looked at
        shares = ((q[:, :, :, part].to(wide) @ of_keys[..., :begun]) * scale - lse[:, :, :, part, None]).exp()
        shares = shares.masked_fill(_after(positions[part], begun), 0.0).amax(2)  # [B, G, b, K']
        found.append(choice.choose(_highest_of_blocks(shares, keys, choice), positions[part]))
    return Selection(torch.cat(found, 2), block_size=choice.size, causal=True)


def _after(positions: Tensor, keys: int) -> Tensor:
    """[b, K]: which keys come after each query."""
    return torch.arange(keys, device=positions.device) > positions[:, None]


def _highest_of_blocks(x: Tensor, keys: int, choice: BlockTopK) -> Tensor:
    """Of each block of all the keys the highest of `x`, which says nothing of the last ones."""
    x = pad(x, (0, choice.blocks(keys) * choice.size - x.shape[-1]), value=-torch.inf)
    return x.unflatten(-1, (-1, choice.size)).amax(-1)
