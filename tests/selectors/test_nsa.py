"""`NSA`: when compressed blocks are seen, what importance a block has, and which blocks are selected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.selectors.nsa import NSA
from tests.chunked_selectors import check_chunks

SMALL = NSA(length=6, stride=2, block=8, count=3, first=1, local=1, window=9)


def test_the_defaults_are_the_paper_s() -> None:
    nsa = NSA()
    assert (nsa.length, nsa.stride, nsa.block, nsa.count, nsa.first, nsa.local, nsa.window) == (
        32,
        16,
        64,
        16,
        1,
        2,
        512,
    )


@pytest.mark.parametrize("nsa", [NSA(), SMALL, NSA(4, 4, 4, 1, 0, 1, 1)], ids=str)
def test_a_compressed_block_is_seen_from_its_last_token_on(nsa: NSA) -> None:
    for tokens in range(1, 150):
        whole = [i for i in range(tokens) if i * nsa.stride + nsa.length <= tokens]
        assert nsa.compressed(tokens) == len(whole)
        assert nsa.seen(torch.tensor([tokens - 1])).item() == len(whole)


@pytest.mark.parametrize("keys", [1, 7, 8, 9, 31, 64])
def test_importance_is_the_share_of_what_lies_inside(keys: int) -> None:
    """A block gets of each compressed block's share as many times as strides of it lie inside."""
    nsa = SMALL
    shares = torch.rand(2, nsa.compressed(keys), dtype=torch.float64)
    right = torch.zeros(2, nsa.choice.blocks(keys), dtype=torch.float64)
    for i in range(shares.shape[1]):
        for stretch in range(nsa.length // nsa.stride):
            right[:, (i * nsa.stride + stretch * nsa.stride) // nsa.block] += shares[:, i]
    torch.testing.assert_close(nsa.importance(shares, keys), right)


def by_hand(q: Tensor, compressed: Tensor, keys: int, nsa: NSA) -> list[list[int]]:
    """For the query heads [r, Q, D] of one key head: which blocks they select together."""
    rows = []
    for i in range(q.shape[1]):
        position = keys - q.shape[1] + i
        seen = [c for c in range(compressed.shape[0]) if c * nsa.stride + nsa.length - 1 <= position]
        shares = torch.zeros(compressed.shape[0], dtype=q.dtype)
        if seen:
            scores = q[:, i] @ compressed[seen].T * q.shape[-1] ** -0.5
            shares[seen] = scores.softmax(-1).sum(0)
        own = position // nsa.block
        forced = {m for m in range(own + 1) if m < nsa.first or m > own - nsa.local}
        importance = nsa.importance(shares, keys).tolist()
        others = sorted(set(range(own + 1)) - forced, key=lambda m: (-round(importance[m], 12), m))
        rows.append(sorted([*forced, *others[: nsa.count - len(forced)]]))
    return rows


@pytest.mark.parametrize(("queries", "keys"), [(50, 50), (5, 50), (1, 3), (9, 9)])
def test_selection_is_the_definition(queries: int, keys: int) -> None:
    nsa, groups = SMALL, 2
    q = torch.randn(2, 6, queries, 4).double() * 3
    compressed = torch.randn(2, groups, nsa.compressed(keys), 4).double()
    found = nsa.select(q, compressed, lse_of(q, compressed, keys), keys)
    assert (found.block_size, found.causal, found.indices.dtype) == (8, True, torch.int32)
    for b in range(2):
        for g in range(groups):
            rows = [[m for m in row if m >= 0] for row in found.indices[b, g].tolist()]
            assert rows == by_hand(q[b, 3 * g : 3 * g + 3], compressed[b, g], keys, nsa)


def lse_of(q: Tensor, compressed: Tensor, keys: int) -> Tensor:
    scores = q @ compressed.repeat_interleave(q.shape[1] // compressed.shape[1], 1).mT * q.shape[-1] ** -0.5
    seen = SMALL.seen(torch.arange(keys - q.shape[2], keys))[:, None] > torch.arange(compressed.shape[2])
    return scores.masked_fill(~seen, -torch.inf).logsumexp(-1)


def test_no_tensor_is_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    q, compressed = torch.randn(1, 2, 60, 2), torch.randn(1, 1, SMALL.compressed(60), 2)
    lse = lse_of(q, compressed, 60)
    check_chunks(lambda: SMALL.select(q, compressed, lse, 60).indices, monkeypatch, 2 * 60 * 28)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "NSA: stride is 0"),
        ({"window": 0}, "NSA: window is 0"),
        ({"length": 40}, "NSA: length is 40; give a multiple of stride=16"),
        ({"block": 40}, "NSA: block is 40; give a multiple of stride=16"),
        ({"count": 2}, "first is 1 and local is 2, which is more than count=2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NSA(**settings)
