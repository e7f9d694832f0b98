"""`moba_selection`: the definition, a head and a query at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.selectors.moba import moba_selection
from tests.chunked_selectors import check_chunks


def by_hand(q: Tensor, k: Tensor, block: int, count: int) -> list[list[int]]:
    """For one query head and its keys, [Q, D] and [K, D]: which blocks each query sees."""
    rows = []
    for i, query in enumerate(q):
        own = (k.shape[0] - q.shape[0] + i) // block
        scores = {m: float(query @ k[m * block : (m + 1) * block].mean(0)) for m in range(own)}
        past = sorted(scores, key=lambda m: (-scores[m], m))[: count - 1]
        rows.append(sorted([*past, own]))
    return rows


@pytest.mark.parametrize(("queries", "keys"), [(50, 50), (7, 50), (1, 33), (16, 16), (3, 3)])
@pytest.mark.parametrize(("block", "count"), [(8, 3), (8, 1), (5, 4), (64, 3)])
def test_it_is_the_definition(queries: int, keys: int, block: int, count: int) -> None:
    q, k = torch.randn(2, 4, queries, 6).double(), torch.randn(2, 2, keys, 6).double()
    found = moba_selection(q, k, block, count)
    assert (found.block_size, found.causal, found.indices.dtype) == (block, True, torch.int32)
    for b in range(2):
        for h in range(4):
            rows = [[m for m in row if m >= 0] for row in found.indices[b, h].tolist()]
            assert rows == by_hand(q[b, h], k[b, h // 2], block, count)


def test_no_tensor_is_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = torch.randn(1, 4, 64, 2), torch.randn(1, 2, 64, 2)
    check_chunks(lambda: moba_selection(q, k, 2, 3).indices, monkeypatch, 64 * 32)


def test_what_later_keys_are_changes_no_choice() -> None:
    q, k = torch.randn(1, 2, 40, 6), torch.randn(1, 2, 40, 6)
    found = moba_selection(q, k, 8, 2).indices
    for t in range(0, 40, 3):
        other = torch.cat([k[:, :, : t + 1], 9 * torch.randn(1, 2, 39 - t, 6)], 2)
        assert torch.equal(moba_selection(q, other, 8, 2).indices[:, :, : t + 1], found[:, :, : t + 1])


def test_half_precision_is_scored_in_float32() -> None:
    q, k = (torch.randn(1, 2, 64, 16).bfloat16() for _ in range(2))
    found, right = moba_selection(q, k, 8, 3), moba_selection(q.float(), k.float(), 8, 3)
    assert torch.equal(found.indices, right.indices)


@pytest.mark.parametrize("k", [torch.zeros(1, 3, 8, 4), torch.zeros(1, 2, 8, 5), torch.zeros(2, 2, 8, 4)], ids=str)
def test_shapes_that_do_not_fit_are_refused(k: Tensor) -> None:
    with pytest.raises(ValueError, match=r"q is \[1, 4, 8, 4\] and k .*give \[B, H, Q, D\]"):
        moba_selection(torch.zeros(1, 4, 8, 4), k)
