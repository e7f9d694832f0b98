"""HySparse: what a full layer lends, and the sparse layer's two branches against their formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import Causal, Window, attend
from gossamer.nn.hysparse import HySparseAttention, HySparseFullAttention
from gossamer.nn.recent_cache import RecentCache
from gossamer.nn.whole_cache import WholeCache
from gossamer.selectors.block_topk import BlockTopK
from tests.causal_modules import check_gradients_reach, check_no_leak, check_slope

CHOICE = BlockTopK(8, 2, local=0)


class Pair(torch.nn.Module):
    """A full layer and a sparse one on what it gives, with caches that are one."""

    def __init__(self, choice: BlockTopK = CHOICE, window: int = 10):
        super().__init__()
        torch.manual_seed(0)
        self.full = HySparseFullAttention(24, 4, 2, choice)
        self.sparse = HySparseAttention(24, 4, 2, window)

    def forward(self, x: Tensor, *, cache: tuple[WholeCache, RecentCache] | None = None) -> Tensor:
        of_full, of_sparse = (None, None) if cache is None else cache
        x = 3.0 * x
        out, shared = self.full(x, cache=of_full)
        return self.sparse(x + out, shared, cache=of_sparse)


def pair(choice: BlockTopK = CHOICE, window: int = 10) -> Pair:
    return Pair(choice, window).double()


def inputs(length: int = 50) -> Tensor:
    return torch.randn(2, length, 24, dtype=torch.float64)


def test_the_full_layer_is_full_attention_and_lends_what_it_used() -> None:
    full, x = pair().full, inputs()
    out, shared = full(x)
    q, k, v = full.project_at(x, 0)
    torch.testing.assert_close(out, full.merge(attend(q, k, v, Causal())))
    assert torch.equal(shared.k, k) and torch.equal(shared.v, v)
    shares = (q @ k.repeat_interleave(2, 1).mT * 6**-0.5).masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf)
    shares = torch.nn.functional.pad(shares.softmax(-1), (0, 6)).unflatten(-1, (7, 8)).amax(-1)  # [B, H, Q, blocks]
    best = shares.unflatten(1, (2, 2)).amax(2).topk(2).indices.sort(-1).values
    assert torch.equal(shared.selection.indices[:, :, 8:], best[:, :, 8:].int())
    assert shared.selection.indices[:, :, :8].unique().tolist() == [-1, 0]  # one block has begun


def in_dense(sparse: HySparseAttention, x: Tensor, shared: object) -> Tensor:
    q, k, v = sparse.project_at(x, 0)
    at = torch.arange(x.shape[1])
    chosen = (shared.selection.indices[..., None] == at // 8).any(3).tril().repeat_interleave(2, 1)
    outs = []
    for keys, values, seen in ((shared.k, shared.v, chosen), (k, v, (at[:, None] - at < sparse.window).tril())):
        keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
        outs.append((q @ keys.mT * 6**-0.5).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0) @ values)
    gates = sparse.gate(x).sigmoid().unflatten(-1, (2, 4)).permute(2, 0, 3, 1)[..., None]
    return sparse.merge(outs[0] * gates[0] + outs[1] * gates[1])


@pytest.mark.parametrize("length", [1, 8, 50])
def test_the_sparse_layer_is_the_formula(length: int) -> None:
    made, x = pair(), inputs(length)
    shared = made.full(x)[1]
    torch.testing.assert_close(made.sparse(x, shared), in_dense(made.sparse, x, shared), rtol=1e-9, atol=1e-11)


def test_with_every_block_and_one_gate_it_is_full_attention_over_the_lent_keys() -> None:
    made, x = pair(BlockTopK(8, 7, local=0)), inputs()
    with torch.no_grad():
        made.sparse.gate.weight.zero_()
        made.sparse.gate.bias.copy_(torch.tensor([1e4] * 4 + [-1e4] * 4))
    shared = made.full(x)[1]
    right = made.sparse.merge(attend(made.sparse.project_at(x, 0)[0], shared.k, shared.v, Causal()))
    torch.testing.assert_close(made.sparse(x, shared), right, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        made.sparse.gate.bias.neg_()
    right = made.sparse.merge(attend(*made.sparse.project_at(x, 0), Causal() & Window(10)))
    torch.testing.assert_close(made.sparse(x, shared), right, rtol=1e-9, atol=1e-11)


def test_nothing_of_the_future_is_seen() -> None:
    check_no_leak(pair(), inputs(40), range(40))


@pytest.mark.parametrize("pieces", [[1] * 50, [20, 1, 29], [50]], ids=str)
def test_pieces_through_caches_equal_the_whole(pieces: list[int]) -> None:
    made, x = pair(), inputs()
    cache = WholeCache(), RecentCache()
    found = torch.cat([made(piece, cache=cache) for piece in x.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(found, made(x), rtol=1e-9, atol=1e-11)
    assert cache[1].rows[0].shape[2] == 9  # the sparse layer holds its window alone


def test_gradients_reach_the_lent_keys_and_every_parameter_and_are_slopes() -> None:
    made = pair()
    check_gradients_reach(made, made(inputs()))
    check_slope(made, inputs(20))
    x = inputs()
    shared = made.full(x)[1]
    grads = torch.autograd.grad(made.sparse(x, shared).square().sum(), [shared.k, shared.v])
    assert all(grad.any() for grad in grads) and not shared.selection.indices.requires_grad


def test_a_window_is_a_number_of_keys() -> None:
    assert HySparseAttention(24, 4, 2).window == 128
    with pytest.raises(ValueError, match="size is 0"):
        HySparseAttention(24, 4, 2, window=0)
