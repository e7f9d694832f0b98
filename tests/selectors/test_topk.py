"""The choice of the largest scores in plain PyTorch: ties, zeros, infinities and rows that see too little."""

from __future__ import annotations

import pytest
import torch

from gossamer.kernels.tiled.top_keys import TILED_SELECTION
from gossamer.selectors.topk import largest, weighted_scores
from tests.top_keys_checks import KINDS, check_selection


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_definition(kind: str) -> None:
    check_selection(TILED_SELECTION.select, kind)
    check_selection(TILED_SELECTION.select, kind, keys=30, count=60)


def test_float64_tells_apart_what_float32_cannot() -> None:
    scores = torch.tensor([1.0, 1.0 + 2**-40, 1.0], dtype=torch.float64)
    assert largest(scores, 1).tolist() == [1]
    assert largest(scores.float(), 1).tolist() == [0]


def test_scores_are_the_sum_over_heads() -> None:
    q, k, weights = torch.randn(2, 3, 5, 8).double(), torch.randn(2, 7, 8).double(), torch.randn(2, 5, 3).double()
    for relu in (False, True):
        right = torch.zeros(2, 5, 7, dtype=torch.float64)
        for j in range(3):
            product = q[:, j] @ k.mT
            right += weights[:, :, j, None] * (product.relu() if relu else product)
        torch.testing.assert_close(weighted_scores(q, k, weights, relu), right)
