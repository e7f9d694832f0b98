"""The best keys in plain PyTorch: the algorithm to read first, on every device and in float64."""

from __future__ import annotations

from torch import Tensor

from ...selectors.topk import largest, weighted_scores, without_future
from ..top_keys import Indexed

MOST_PRODUCTS = 2**23
"""Of all heads, that are held at a time."""


class TiledScores:
    """Scores in float32, or in float64 where the queries have it, on every device."""

    most_scores = 2**21

    def refuses(self, index: Indexed) -> str | None:
        """Never: the operator takes only what it computes."""
        return None

    def together(self, index: Indexed) -> int:
        """Any number."""
        return 1

    def score(self, index: Indexed) -> Tensor:
        """[B, Q, K], as `Scorer` says; a few keys at a time, because there is a product for each head."""
        dtype = index.weights.dtype
        q, (batch, keys, _) = index.q.to(dtype), index.k.shape
        scores = q.new_empty(batch, q.shape[2], keys)
        most = max(1, MOST_PRODUCTS // max(1, q.shape[:3].numel()))
        for first in range(0, keys, most):
            some = slice(first, first + most)
            scores[..., some] = weighted_scores(q, index.k[:, some].to(dtype), index.weights, index.relu)
        return scores if index.key_scales is None else scores.mul_(index.key_scales[:, None])


class TiledSelection:
    """The choice by the count-th largest score and what equals it."""

    def select(self, scores: Tensor, visible: Tensor, count: int) -> Tensor:
        """int32 [R, count], as `Selector` says."""
        return largest(without_future(scores, visible), count)


TILED_SCORES, TILED_SELECTION = TiledScores(), TiledSelection()
