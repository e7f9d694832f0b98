"""The keys of largest score: what a learned index says of each key, and the exact choice of the best, in plain PyTorch.

DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556), equation 1: the score of key s for query t is the weighted sum, over the
index heads, of the rectified products of both.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_scores(q: Tensor, k: Tensor, weights: Tensor, relu: bool) -> Tensor:
    """[B, Q, K]: `sum_j weights[t, j] · act(q[j, t] · k[s])` of q [B, J, Q, D], k [B, K, D] and weights [B, Q, J].

    All in the dtype of the tensors. A tensor of [B, Q, J, K] is made on the way.

    >>> q, k = torch.tensor([[[[1.0]], [[-1.0]]]]), torch.tensor([[[2.0], [-3.0]]])
    >>> weighted_scores(q, k, torch.tensor([[[1.0, 10.0]]]), relu=True).tolist()
    [[[2.0, 30.0]]]
    """
    batch, heads, queries, width = q.shape
    rows = q.transpose(1, 2).reshape(batch, queries * heads, width)
    products = (rows @ k.mT).unflatten(1, (queries, heads))
    return (weights[:, :, None] @ (products.relu_() if relu else products))[:, :, 0]


def largest(scores: Tensor, count: int) -> Tensor:
    """int32 [..., count]: where the largest of scores [..., K] stand, in ascending order, -1 behind the last.

    Of equal scores the first are taken, and -0 equals 0. What is minus infinity or NaN is never taken.

    >>> largest(torch.tensor([1.0, 5.0, 1.0, -torch.inf, 7.0]), 3).tolist()
    [0, 1, 4]
    >>> largest(torch.tensor([-torch.inf, torch.nan, 0.0]), 2).tolist()
    [2, -1]
    """
    keys = scores.shape[-1]
    scores = torch.where(scores > -torch.inf, scores, -torch.inf)
    taken = scores > -torch.inf
    if count < keys:
        least = scores.topk(count, -1).values[..., -1:]
        above, equal = scores > least, (scores == least) & taken
        taken = above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    place = torch.where(taken, taken.cumsum(-1) - 1, count)
    found = torch.full((*scores.shape[:-1], count + 1), -1, dtype=torch.int32, device=scores.device)
    positions = torch.arange(keys, dtype=torch.int32, device=scores.device)
    return found.scatter_(-1, place, positions.expand(place.shape))[..., :count].contiguous()


def seen_from(positions: Tensor, keys: int) -> Tensor:
    """int32: how many of the first keys queries at `positions` see, themselves the last; between 0 and all."""
    return (positions + 1).clamp(0, keys).to(torch.int32)


def without_future(scores: Tensor, visible: Tensor) -> Tensor:
    """The scores [..., Q, K], minus infinity from key `visible` [..., Q] on."""
    hidden = torch.arange(scores.shape[-1], device=scores.device) >= visible[..., None]
    return scores.masked_fill(hidden, -torch.inf)
