"""Blocks by their highest token, of an index branch's scores and of attention's shares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.selectors.block_topk import BlockTopK
from gossamer.selectors.peaks import MSA, highest_score_selection, highest_share_selection
from tests.chunked_selectors import check_chunks

CHOICES = (BlockTopK(8, 3), BlockTopK(8, 2, local=0), BlockTopK(5, 4, first=1, local=2), BlockTopK(64, 2))
every_choice = pytest.mark.parametrize("choice", CHOICES, ids=str)
every_length = pytest.mark.parametrize(("queries", "keys"), [(50, 50), (7, 50), (1, 33), (3, 3)])


def by_hand(of_tokens: Tensor, choice: BlockTopK) -> list[list[int]]:
    """Which blocks each query sees, of what each of the tokens has for it [Q, K]."""
    queries, keys = of_tokens.shape
    rows = []
    for i in range(queries):
        position = keys - queries + i
        own = position // choice.size
        best = {
            m: float(of_tokens[i, m * choice.size : min((m + 1) * choice.size, position + 1)].max())
            for m in range(own + 1)
        }
        forced = [m for m in best if m < choice.first or m > own - choice.local]
        others = sorted(set(best) - set(forced), key=lambda m: (-best[m], m))
        rows.append(sorted([*forced, *others][: choice.count]))
    return rows


def chosen(found: Tensor) -> list[list[int]]:
    return [[m for m in row if m >= 0] for row in found.tolist()]


@every_choice
@every_length
def test_scores_are_the_definition(choice: BlockTopK, queries: int, keys: int) -> None:
    q, k = torch.randn(2, 3, queries, 6).double(), torch.randn(2, keys, 6).double()
    found = highest_score_selection(q, k, choice)
    assert (found.block_size, found.causal, found.indices.dtype) == (choice.size, True, torch.int32)
    for b in range(2):
        for h in range(3):
            assert chosen(found.indices[b, h]) == by_hand(q[b, h] @ k[b].T, choice)


@every_choice
@every_length
def test_shares_are_the_definition(choice: BlockTopK, queries: int, keys: int) -> None:
    q, k = torch.randn(2, 6, queries, 4).double(), torch.randn(2, 2, keys, 4).double()
    after = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    scores = (q @ k.repeat_interleave(3, 1).mT * 0.7).masked_fill(after, -torch.inf)
    found = highest_share_selection(q, k, scores.logsumexp(-1), choice, scale=0.7)
    shares = scores.softmax(-1).unflatten(1, (2, 3)).amax(2)
    for b in range(2):
        for g in range(2):
            assert chosen(found.indices[b, g]) == by_hand(shares[b, g], choice)


def test_no_tensor_is_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = BlockTopK(4, 3)
    q, k = torch.randn(1, 2, 64, 2), torch.randn(1, 1, 64, 2)
    check_chunks(lambda: highest_score_selection(q, k[:, 0], choice).indices, monkeypatch, 64 * 64)
    lse = torch.zeros(1, 2, 64)
    check_chunks(lambda: highest_share_selection(q, k, lse, choice).indices, monkeypatch, 64 * 64)


def test_what_later_keys_are_changes_no_choice() -> None:
    q, k = torch.randn(1, 2, 40, 6), torch.randn(1, 40, 6)
    found = highest_score_selection(q, k, BlockTopK(8, 2)).indices
    for t in range(0, 40, 3):
        other = torch.cat([k[:, : t + 1], 9 * torch.randn(1, 39 - t, 6)], 1)
        assert torch.equal(
            highest_score_selection(q, other, BlockTopK(8, 2)).indices[:, :, : t + 1], found[:, :, : t + 1]
        )


def test_the_blocks_of_minimax_are_the_default() -> None:
    assert BlockTopK(128, 16, first=0, local=1) == MSA
