"""`moba_selection`: blocks whose mean key a query points to (MoBA, Lu et al. 2025, arXiv 2502.13189)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from .block_topk import BlockTopK, positions_of, query_chunks
from .selection import Selection


@torch.no_grad()
def moba_selection(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B G K D"], block: int = 512, count: int = 3
) -> Selection:
    """For each query of each head its own block, and of the past ones the `count - 1` nearest to it by their mean key.

    A block's score is the product of the query and the mean of the block's keys, so there is nothing to learn, and no
    gradient. Every query head chooses for itself, also where several share a key head: a choice a query head, int32
    [B, H, Q, n] in `indices`. Of equal scores the older block wins. Scores are made for a run of queries at a time.

    >>> q = k = torch.eye(8).view(1, 1, 8, 8)
    >>> moba_selection(q, k, block=2, count=2).indices[0, 0, -1].tolist()  # all others score 0: the oldest, and its own
    [0, 3]

    Args:
        block: Keys of a block; the paper's runs over 8,192 tokens have 512.
        count: Blocks that a query sees, its own included; 3 there.

    Raises:
        ValueError: Shapes that do not fit, or numbers that are none.
    """
    choice = BlockTopK(block, count)
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q is {list(q.shape)} and k {list(k.shape)}; give [B, H, Q, D] and [B, G, K, D], where G divides H"
        )
    (batch, heads, queries, _), (groups, keys) = q.shape, k.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    positions = positions_of(queries, keys, q.device)
    whole = keys // block  # a block that is cut short is the last query's own, which needs no score
    means = k[:, :, : whole * block].to(wide).unflatten(2, (whole, block)).mean(3)[:, :, None]  # [B, G, 1, M, D]
    grouped = q.unflatten(1, (groups, -1))
    found = []
    for part in query_chunks(queries, batch * heads * choice.blocks(keys)):
        scores = grouped[:, :, :, part].to(wide) @ means.mT
        scores = pad(scores, (0, choice.blocks(keys) - whole))
        found.append(choice.choose(scores.flatten(1, 2), positions[part]))
    return Selection(torch.cat(found, 2), block_size=block, causal=True)
