"""What a layer's indexer learns from, against matrices of all pairs in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer import Causal, attend
from gossamer.config import IndexerConfig
from gossamer.nn.indexed import IndexedAttention
from gossamer.nn.indexer import LightningIndexer
from gossamer.nn.indexing import Indexing, Stage, loss_of

LENGTH, TOPK = 40, 6


def layer(stage: Stage, relu: bool = True) -> IndexedAttention:
    config = IndexerConfig(index_n_heads=3, index_head_dim=16, index_topk=TOPK, qk_rope_head_dim=8, relu=relu)
    torch.manual_seed(0)
    made = IndexedAttention(4, 32, config, n_kv_head=2).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)  # so that softmaxes are far from flat
    made.stage = stage
    return made


def oracle(indexer: LightningIndexer, seen: Indexing, mask: Tensor) -> Tensor:
    """Row by row, over lists of the keys that were seen."""
    q, k, weights = seen.index
    k_of_head = seen.k.repeat_interleave(seen.q.shape[1] // seen.k.shape[1], 1)
    divergences = []
    for row in range(len(mask)):
        for query in range(mask.shape[1]):
            keys = mask[row, query].nonzero().flatten()
            if not len(keys):
                continue
            scores = seen.scale * torch.einsum("hd,hkd->hk", seen.q[row, :, query], k_of_head[row][:, keys])
            target = scores.softmax(-1).sum(0)
            target = (target / target.sum()).detach()
            products = q[row, :, query] @ k[row, keys].T
            products = products.relu() if indexer.config.relu else products
            index = (weights[row, query][:, None] * products).sum(0)
            divergences.append((target * (target.log() - index.log_softmax(-1))).sum())
    return torch.stack(divergences).mean()


def seen_by(seen: Indexing, within: Tensor | None = None) -> Tensor:
    mask = torch.ones(LENGTH, LENGTH).tril().bool().expand(2, -1, -1).clone()
    if seen.selection is not None:
        chosen = torch.zeros(2, LENGTH, LENGTH + 1, dtype=torch.bool)
        indices = seen.selection.indices[:, 0].long()
        mask &= chosen.scatter_(-1, indices.where(indices >= 0, LENGTH), True)[..., :LENGTH]
    if within is not None:
        inside = (torch.arange(LENGTH) >= within[:, :1]) & (torch.arange(LENGTH) < within[:, 1:])
        mask &= inside[:, None] & inside[:, :, None]
    return mask


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("stage", ["warm_up", "sparse"])
@pytest.mark.parametrize("within", [None, [[0, LENGTH], [9, 33]]])
def test_it_and_its_gradients_are_those_of_all_pairs(stage: Stage, relu: bool, within: list[list[int]] | None) -> None:
    made, x = layer(stage, relu), torch.randn(2, LENGTH, 32, dtype=torch.float64)
    places = None if within is None else torch.tensor(within, dtype=torch.int32)
    _, seen = made(x, True, within=places)
    expected = oracle(made.indexer, seen, seen_by(seen, places))
    found = loss_of(made.indexer, seen)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = list(made.indexer.parameters())
    right = torch.autograd.grad(expected, weights, retain_graph=True)
    for one, other in zip(torch.autograd.grad(found, weights), right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def test_gradients_reach_the_indexer_alone() -> None:
    made, x = layer("sparse"), torch.randn(2, LENGTH, 32, dtype=torch.float64, requires_grad=True)
    _, seen = made(x, True)
    loss_of(made.indexer, seen).backward()
    assert x.grad is None
    assert all((p.grad is not None) == name.startswith("indexer.") for name, p in made.named_parameters())


def test_an_indexer_that_says_where_heads_look_has_nothing_to_learn() -> None:
    """One head whose queries and keys are the indexer's own, without positions: both softmaxes are one."""
    config = IndexerConfig(index_n_heads=1, index_head_dim=16, index_topk=TOPK, qk_rope_head_dim=0, relu=False)
    indexer = LightningIndexer(32, 32, config).double()
    index = indexer.project(torch.randn(2, LENGTH, 32, dtype=torch.float64), None, torch.arange(LENGTH))
    index = index._replace(weights=torch.ones_like(index.weights))
    q, k = index.q.detach(), index.k.detach()[:, None]
    _, lse = attend(q, k, k, Causal(), scale=1.0, return_lse=True)
    assert abs(loss_of(indexer, Indexing(None, index, q, k, lse, 1.0)).item()) < 1e-12


def test_rows_that_saw_nothing_count_for_nothing() -> None:
    made, x = layer("sparse"), torch.randn(2, LENGTH, 32, dtype=torch.float64)
    _, seen = made(x, True)
    indices = seen.selection.indices.clone()
    indices[:, :, 10:20] = -1
    seen = seen._replace(selection=replace(seen.selection, indices=indices))
    hidden = seen.lse.clone()
    hidden[:, :, 10:20] = -torch.inf
    found = loss_of(made.indexer, seen._replace(lse=hidden))
    torch.testing.assert_close(found, oracle(made.indexer, seen, seen_by(seen)), rtol=1e-10, atol=1e-12)
    grads = torch.autograd.grad(found, list(made.indexer.parameters()))
    assert all(grad.isfinite().all() for grad in grads)
    nothing = replace(seen.selection, indices=torch.full_like(indices, -1))
    assert loss_of(made.indexer, seen._replace(selection=nothing)).item() == 0.0


def test_half_precision_is_summed_in_float32() -> None:
    made, x = layer("sparse").float(), torch.randn(2, LENGTH, 32)
    with torch.autocast("cpu", torch.bfloat16):
        _, seen = made(x, True)
        found = loss_of(made.indexer, seen)
    assert found.dtype == torch.float32
    wide = Indexing(
        seen.selection, type(seen.index)(*(part.double() for part in seen.index)), seen.q.double(), seen.k.double(),
        seen.lse.double(), seen.scale,
    )  # fmt: skip
    assert found.item() == pytest.approx(loss_of(made.indexer, wide).item(), rel=2e-2)


def test_a_layer_that_took_a_selection_has_no_loss() -> None:
    made, x = layer("sparse"), torch.randn(2, LENGTH, 32, dtype=torch.float64)
    _, seen = made(x, True)
    with pytest.raises(ValueError, match="took another one"):
        loss_of(made.indexer, seen._replace(index=None))
