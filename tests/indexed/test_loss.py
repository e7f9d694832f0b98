"""`indexer_loss` is the divergence of its definition, teaches the index alone, and never holds all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gossamer.indexed import Selection, indexer_loss, top_keys
from gossamer.kernels.tiled import warm_up
from gossamer.kernels.tiled.warm_up import TILED_WARM_UP
from gossamer.kernels.warm_up import Lesson


@dataclass(frozen=True)
class Case:
    """Sizes of a layer, and what it sees."""

    queries: int = 13
    keys: int = 13
    heads: int = 4
    key_heads: int = 2
    index_heads: int = 3
    within: tuple[tuple[int, int], ...] | None = None
    sinks: bool = False
    relu: bool = True
    count: int | None = None
    """Keys that are chosen for a query; None: all are seen."""
    batch: int = 2


CASES = {
    "all keys": Case(),
    "the last queries": Case(queries=4, keys=17),
    "queries before the first key": Case(queries=9, keys=5),
    "within": Case(within=((0, 9), (4, 13))),
    "nothing there": Case(within=((0, 0), (5, 6))),
    "sinks": Case(sinks=True),
    "one key head": Case(key_heads=1, index_heads=1),
    "no relu": Case(relu=False),
    "chosen": Case(count=4),
    "chosen, sinks": Case(count=4, sinks=True),
    "chosen, no relu": Case(count=3, relu=False),
    "more chosen than there are": Case(count=20),
}


@dataclass(frozen=True, eq=False)
class Problem:
    case: Case
    index: tuple[Tensor, Tensor, Tensor]
    q: Tensor
    k: Tensor
    lse: Tensor
    selection: Selection | None

    def loss(self, *index: Tensor) -> Tensor:
        within = self.case.within
        within = None if within is None else torch.tensor(within, dtype=torch.int32)
        given = index or self.index, self.q, self.k, self.lse, self.selection
        return indexer_loss(*given, scale=0.4, relu=self.case.relu, within=within)


def seen_by(case: Case, selection: Selection | None) -> Tensor:
    """bool [B, Q, K], dense."""
    at = torch.arange(case.keys - case.queries, case.keys)[:, None]
    seen = (torch.arange(case.keys) <= at).expand(case.batch, -1, -1).clone()
    for row, (first, end) in enumerate(case.within or ()):
        seen[row] &= (torch.arange(case.keys) >= first) & (at >= first) & (at < end)
    return seen if selection is None else seen & selection.strip(0, case.queries, case.keys)[:, 0]


def scores_of(q: Tensor, k: Tensor, case: Case) -> Tensor:
    """[B, H, Q, K]"""
    return 0.4 * q @ k.repeat_interleave(case.heads // case.key_heads, 1).mT


def draw(case: Case, dtype: torch.dtype = torch.float64, width: int = 6) -> Problem:
    shape = case.batch, case.index_heads, case.queries, width
    index_q, index_k = torch.randn(shape).to(dtype), torch.randn(case.batch, case.keys, width).to(dtype)
    weights = torch.randn(case.batch, case.queries, case.index_heads).to(torch.promote_types(dtype, torch.float32))
    q, k = torch.randn(case.batch, case.heads, case.queries, 8), torch.randn(case.batch, case.key_heads, case.keys, 8)
    q, k = q.to(dtype), k.to(dtype)
    selection = None
    if case.count is not None:
        selection = Selection(top_keys(torch.randn_like(index_q), index_k, weights, case.count))
    scores = scores_of(q.double(), k.double(), case).masked_fill(~seen_by(case, selection)[:, None], -torch.inf)
    if case.sinks:
        scores = torch.cat([scores, torch.randn(1, case.heads, 1, 1).expand(case.batch, -1, case.queries, 1)], -1)
    lse = scores.logsumexp(-1).to(weights.dtype)
    return Problem(case, (index_q, index_k, weights), q, k, lse, selection)


def definition(problem: Problem) -> Tensor:
    """The loss in float64, of dense scores, and row by row."""
    case, (index_q, index_k, weights) = problem.case, (x.double() for x in problem.index)
    seen = seen_by(case, problem.selection)
    products = index_q @ index_k[:, None].mT
    scores = torch.einsum("bjqk,bqj->bqk", products.relu() if case.relu else products, weights)
    p = (scores_of(problem.q.double(), problem.k.double(), case) - problem.lse.double()[..., None]).exp().sum(1)
    losses = []
    for b, t in seen.any(-1).nonzero().tolist():
        target = p[b, t, seen[b, t]]
        target = target / target.sum()
        losses.append((target * (target.log() - scores[b, t, seen[b, t]].log_softmax(-1))).sum())
    return torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("edge", [1, 5, 1000])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_definition(name: str, edge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.setitem(warm_up.PRODUCTS, "cpu", edge**2 * case.batch * case.heads)
    problem = draw(case)
    index = [x.requires_grad_() for x in problem.index]
    found, right = problem.loss(), definition(problem)
    torch.testing.assert_close(found, right)
    if right.requires_grad:
        gradients = (torch.autograd.grad(loss, index) for loss in (found, right))
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["all keys", "within", "chosen, sinks"])
def test_narrow_dtypes_are_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    problem = draw(CASES[name], dtype)
    index = [x.requires_grad_() for x in problem.index]
    found, right = problem.loss(), definition(problem)
    assert found.dtype == torch.float32
    assert (found - right).abs() <= 16 * torch.finfo(torch.float32).eps * right.abs().clamp(min=1.0)
    gradients = (torch.autograd.grad(loss, index) for loss in (found, right))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours.double() - theirs).abs().max() <= 4 * torch.finfo(ours.dtype).eps * theirs.abs().max()


@pytest.mark.parametrize("name", ["all keys", "within", "no relu", "chosen"])
def test_the_gradient_is_the_derivative(name: str) -> None:
    problem = draw(CASES[name])
    assert torch.autograd.gradcheck(problem.loss, [x.requires_grad_() for x in problem.index])


def test_all_keys_as_a_choice_are_all_keys() -> None:
    problem = draw(CASES["all keys"])
    every = Selection(torch.arange(13, dtype=torch.int32).expand(2, 13, 13), causal=True)
    chosen = Problem(problem.case, problem.index, problem.q, problem.k, problem.lse, every)
    index = [x.requires_grad_() for x in problem.index]
    torch.testing.assert_close(chosen.loss(), problem.loss())
    gradients = (torch.autograd.grad(loss, index) for loss in (chosen.loss(), problem.loss()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["all keys", "chosen"])
def test_attention_learns_nothing(name: str) -> None:
    problem = draw(CASES[name])
    for x in (*problem.index, problem.q, problem.k, problem.lse):
        x.requires_grad_()
    problem.loss().backward()
    assert problem.q.grad is None and problem.k.grad is None and problem.lse.grad is None
    assert all(x.grad is not None and x.grad.any() for x in problem.index)


@pytest.mark.parametrize("name", ["nothing there", "queries before the first key", "chosen"])
def test_queries_that_see_nothing_count_for_nothing(name: str) -> None:
    problem = draw(CASES[name])
    problem.lse[0, :, 7:] = -torch.inf
    if problem.selection is not None:
        problem.selection.indices[0, :, 7:] = -1
    index = [x.requires_grad_() for x in problem.index]
    problem.loss().backward()
    assert problem.loss().isfinite() and all(x.grad.isfinite().all() for x in index)
    assert not index[0].grad[0, :, 7:].any() and not index[2].grad[0, 7:].any()


def test_where_nobody_sees_anything_it_is_zero() -> None:
    problem = draw(Case(within=((0, 0), (5, 5))))
    index = [x.requires_grad_() for x in problem.index]
    problem.loss().backward()
    assert problem.loss() == 0 and not any(x.grad.any() for x in index)


@pytest.mark.parametrize("name", ["all keys", "chosen"])
def test_it_is_zero_where_the_index_says_what_attention_does(name: str) -> None:
    """One head, and an index that scores as it does: no divergence, and no gradient."""
    case = Case(heads=1, key_heads=1, index_heads=1, relu=False, count=CASES[name].count)
    problem = draw(case, width=8)
    weights = torch.full_like(problem.index[2], 0.4)
    index = [x.requires_grad_() for x in (problem.q.clone(), problem.k[:, 0].clone(), weights)]
    loss = problem.loss(*index)
    assert loss.abs() < 1e-12
    assert all(x.abs().max() < 1e-12 for x in torch.autograd.grad(loss, index))


class _Largest(TorchDispatchMode):
    """The most elements that a result of any operation had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return made


def test_nothing_is_as_large_as_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(Case(queries=512, keys=512, batch=1), torch.float32)
    lesson = Lesson(problem.q, problem.k, problem.lse, *problem.index, None, 0.4, True)
    held = []
    for products in (2**12, 2**30):
        monkeypatch.setitem(warm_up.PRODUCTS, "cpu", products)
        with _Largest() as largest:
            found = TILED_WARM_UP.forward(lesson)
            TILED_WARM_UP.backward(lesson, found, torch.ones_like(found.rows))
        held.append(largest.elements)
    assert held == [problem.q.numel(), 512 * 512 * 4]  # no more than q has; and were it done at once, all pairs of it


def test_the_future_changes_nothing() -> None:
    problem = draw(CASES["all keys"])
    within, index = torch.tensor([[0, 6], [0, 6]], dtype=torch.int32), problem.index
    before = indexer_loss(index, problem.q, problem.k, problem.lse, within=within)
    for x in (index[1][:, 6:], problem.k[:, :, 6:]):
        x.fill_(torch.nan)
    problem.lse[:, :, 6:] = torch.nan
    assert torch.equal(indexer_loss(index, problem.q, problem.k, problem.lse, within=within), before)


def test_the_operator_keeps_torch_s_rules() -> None:
    for name in ("all keys", "within"):
        problem = draw(CASES[name], torch.float32)
        within = None if problem.case.within is None else torch.tensor(problem.case.within, dtype=torch.int32)
        index = [x.requires_grad_() for x in problem.index]
        given = problem.q, problem.k, problem.lse, *index, within, 0.4, True
        torch.library.opcheck(torch.ops.gossamer.warm_up_divergence, given)


def test_work_is_that_of_every_pair() -> None:
    problem = draw(CASES["all keys"])
    index = [x.requires_grad_() for x in problem.index]
    with FlopCounterMode(display=False) as counter:
        problem.loss(*index).backward()
    counted, pairs = counter.get_flop_counts()["Global"], 2 * 13 * 13
    assert counted[torch.ops.gossamer.warm_up_divergence] == pairs * 2 * (4 * 8 + 3 * 6)
    assert counted[torch.ops.gossamer.warm_up_divergence_backward] == pairs * 2 * (4 * 8 + 3 * 3 * 6)


REFUSED = {
    "index has queries": lambda p: indexer_loss((p.index[0][:, :, 1:], p.index[1], p.index[2][:, 1:]), p.q, p.k, p.lse),
    "weights is": lambda p: indexer_loss((*p.index[:2], p.index[2].float()), p.q, p.k, p.lse),
    "lse is torch.float64 \\[2, 4, 12\\]": lambda p: indexer_loss(p.index, p.q, p.k, p.lse[..., 1:]),
    "within is given beside a selection": lambda p: indexer_loss(
        p.index, p.q, p.k, p.lse, Selection(torch.zeros(2, 13, 1, dtype=torch.int32)),
        within=torch.zeros(2, 2, dtype=torch.int32),
    ),
    "within is torch.int64": lambda p: indexer_loss(p.index, p.q, p.k, p.lse, within=torch.zeros(2, 2).long()),
    "scale is": lambda p: indexer_loss(p.index, p.q, p.k, p.lse, scale=torch.inf),
    "q has shape": lambda p: indexer_loss(p.index, p.q[0], p.k, p.lse),
    "lse is a list": lambda p: indexer_loss(p.index, p.q, p.k, []),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message](draw(CASES["all keys"]))
