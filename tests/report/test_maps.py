"""Attention maps against the matrix of probabilities, which here is small enough to be made."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.patterns import Blocks, Causal, PerHead, Sinks, Strided, Window
from gossamer.patterns.base import Pattern
from gossamer.report.maps import attention_maps, distance_edges, mass_by_distance

LOCAL, GLOBAL = Causal() & Window(7), Causal() & Strided(5)
PATTERNS = {
    "causal": Causal(),
    "two-sided": Window(9),
    "per head": PerHead([(LOCAL, 3), (GLOBAL, 1)]),
    "blocks": Blocks(8, ((0, 0), (2, 1), (3, 3))) & Causal(),
}


TILE = 16  # cuts a length of tens of tokens into many tiles, the last of them ragged


def problem(pattern: Pattern, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q, k, log-sum-exp, probabilities [B, H, Q, K]) of a random problem with 4 heads over 2."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, queries, 8, generator=generator)
    k = torch.randn(2, 2, keys, 8, generator=generator)
    scores = q @ k.repeat_interleave(2, dim=1).mT / math.sqrt(8)
    hidden = torch.from_numpy(~pattern.dense_mask(queries, keys))
    scores = scores.masked_fill(hidden, -torch.inf)
    return q, k, scores.logsumexp(-1), scores.softmax(-1).nan_to_num(0)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("queries", "keys"), [(50, 50), (32, 32), (19, 50), (1, 50), (1, 1)])
def test_as_many_cells_as_positions_give_the_probabilities(name: str, queries: int, keys: int) -> None:
    q, k, lse, dense = problem(PATTERNS[name], queries, keys)
    torch.testing.assert_close(attention_maps(q, k, lse, pattern=PATTERNS[name], cells=keys, tile=TILE), dense.mean(0))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("cells", [1, 5, 16])
def test_cells_average_over_queries_and_sum_over_keys(name: str, cells: int) -> None:
    q, k, lse, dense = problem(PATTERNS[name], 50, 50)
    cell = torch.arange(50) * cells // 50
    expected = torch.zeros(4, cells, cells)
    for row in range(cells):
        for column in range(cells):
            expected[:, row, column] = dense[:, :, cell == row][..., cell == column].sum(-1).mean((0, 2))
    torch.testing.assert_close(attention_maps(q, k, lse, pattern=PATTERNS[name], cells=cells, tile=TILE), expected)


def test_the_scale_is_the_one_given() -> None:
    q, k, _, _ = problem(Causal(), 12, 12)
    scores = (0.3 * q @ k.repeat_interleave(2, dim=1).mT).masked_fill(
        torch.from_numpy(~Causal().dense_mask(12)), -torch.inf
    )
    found = attention_maps(q, k, scores.logsumexp(-1), pattern=Causal(), scale=0.3, cells=12, tile=TILE)
    torch.testing.assert_close(found, scores.softmax(-1).mean(0))


def test_queries_that_see_nothing_have_a_row_of_zeros() -> None:
    pattern = Causal() & ~Sinks(20)
    q, k, lse, _ = problem(pattern, 40, 40)
    assert lse[:, :, :20].isneginf().all()
    found = attention_maps(q, k, lse, pattern=pattern, cells=40, tile=TILE)
    assert not found[:, :20].any()
    torch.testing.assert_close(found[:, 20:].sum(-1), torch.ones(4, 20))


@pytest.mark.parametrize("name", PATTERNS)
def test_mass_by_distance_sorts_the_probabilities(name: str) -> None:
    q, k, lse, dense = problem(PATTERNS[name], 50, 50)
    distance = np.abs(np.arange(50)[:, None] - np.arange(50)[None, :])
    edges = distance_edges(50)
    expected = [
        (dense * torch.from_numpy((distance >= low) & (distance < high))).sum(-1).mean((0, 2))
        for low, high in pairwise(edges)
    ]
    found = mass_by_distance(q, k, lse, pattern=PATTERNS[name], edges=edges, tile=TILE)
    torch.testing.assert_close(found, torch.stack(expected, dim=1))


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 4096])
def test_distance_edges_cover_the_length_and_no_more_than_twice(length: int) -> None:
    edges = distance_edges(length)
    assert edges[-1] > length - 1
    assert edges[-2] <= max(length - 1, 1)


def test_no_tensor_is_as_large_as_the_matrix() -> None:
    """16,384 tokens: the matrix of one head would be 1 GiB, the tiles are 1 MiB."""
    length, largest = 16384, 0
    q = k = torch.randn(1, 1, length, 8, generator=torch.Generator().manual_seed(0))
    pattern = Causal() & Window(100)

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        attention_maps(q, k, torch.full((1, 1, length), 10.0), pattern=pattern, cells=64)
    assert largest <= max(512 * 512, q.numel())


def test_impossible_requests_are_named() -> None:
    q, k, lse, _ = problem(Causal(), 8, 8)
    with pytest.raises(ValueError, match="cells is 0"):
        attention_maps(q, k, lse, pattern=Causal(), cells=0)
    with pytest.raises(ValueError, match=r"edges is \(4, 2\)"):
        mass_by_distance(q, k, lse, pattern=Causal(), edges=(4, 2))
    with pytest.raises(ValueError, match="written for 2 heads"):
        attention_maps(q, k, lse, pattern=PerHead([(LOCAL, 2)]))
