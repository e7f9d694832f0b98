"""`attend` with lengths: a batch of sequences that end where they end is each sequence on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer import attend
from gossamer.patterns import Causal, Pattern, Window
from tests.checks import Problem, Setting, draw
from tests.patterns_list import HEADS, PATTERNS

LENGTHS = (40, 23, 6, 2, 0)
SETTING = Setting(batch=len(LENGTHS), queries=6, keys=40, width=4)


def with_lengths(problem: Problem, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return attend(
        problem.q, problem.k, problem.v, problem.pattern,
        sinks=problem.sinks, softcap=problem.softcap, lengths=lengths, return_lse=True,
    )  # fmt: skip


def one_by_one(problem: Problem, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Each sequence cut at its length, and the queries that stand before its first key left out."""
    q, k, v, sinks = problem.q, problem.k, problem.v, problem.sinks
    outs, lses = [], []
    for number, length in enumerate(lengths.tolist()):
        hidden = max(q.shape[2] - length, 0)
        out, lse = attend(
            q[number, None, :, hidden:], k[number, None, :, :length], v[number, None, :, :length], problem.pattern,
            sinks=sinks, softcap=problem.softcap, return_lse=True,
        )  # fmt: skip
        unseen = torch.full_like(q[number, None, :, :hidden, 0], -torch.inf)
        if sinks is not None:
            unseen = torch.logaddexp(unseen, sinks[:, None])
        outs.append(torch.nn.functional.pad(out, (0, 0, hidden, 0)))
        lses.append(torch.cat([unseen, lse], 2))
    return torch.cat(outs), torch.cat(lses)


@pytest.mark.parametrize("sinks", [False, True], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("name", PATTERNS)
def test_each_sequence_is_as_if_it_were_alone(name: str, sinks: bool) -> None:
    setting = replace(SETTING, heads=HEADS[name], key_heads=1, sinks=sinks, softcap=3.0 if sinks else None)
    problem = draw(PATTERNS[name], setting)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32 if sinks else torch.int64)
    results = []
    for attention in (with_lengths, one_by_one):
        leaves = {n: x.clone().requires_grad_() for n, x in problem.inputs.items()}
        out, lse = attention(replace(problem, **leaves), lengths)
        grad_lse = problem.grad_lse.double().masked_fill(lse == -torch.inf, 0.0)
        results.append(
            (out, lse, *torch.autograd.grad((out, lse), tuple(leaves.values()), (problem.grad_out, grad_lse)))
        )
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


def test_what_stands_behind_a_length_is_never_read() -> None:
    problem, lengths = draw(PATTERNS["window"], SETTING), torch.tensor(LENGTHS)
    behind = torch.arange(40) >= lengths[:, None]
    k, v = (x.masked_fill(behind[:, None, :, None], torch.nan).requires_grad_() for x in (problem.k, problem.v))
    out, _ = with_lengths(replace(problem, k=k, v=v), lengths)
    assert torch.equal(out, with_lengths(problem, lengths)[0])
    for gradient in torch.autograd.grad(out.sum(), (k, v)):
        assert not gradient.isnan().any()
        assert (gradient[behind[:, None].expand(gradient.shape[:3])] == 0).all()


def test_full_lengths_change_nothing() -> None:
    problem = draw(PATTERNS["window"], SETTING)
    right = attend(problem.q, problem.k, problem.v, problem.pattern, return_lse=True)
    found = with_lengths(problem, torch.full((len(LENGTHS),), 40))
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_dropout_is_that_of_the_positions() -> None:
    """A sequence drops the same pairs whether its cache has room behind it or not, and no other sequence's."""
    problem = draw(Causal() & Window(9), replace(SETTING, batch=2, queries=12))
    seed, settings = torch.tensor([5]), (problem.pattern.spec, 0.5, 0.0, 0.4, None)

    def dropped(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        return torch.ops.gossamer.attend(q, k, v, None, seed, lengths, None, *settings)[0]

    q, k, v = problem.q, problem.k, problem.v
    torch.testing.assert_close(dropped(q, k, v, torch.tensor([31, 31])), dropped(q, k[:, :, :31], v[:, :, :31], None))


def test_a_cache_that_fills_up_gives_what_one_pass_gives() -> None:
    problem = draw(PATTERNS["local and global"], Setting(heads=HEADS["local and global"], queries=24, width=4))
    whole, _ = attend(problem.q, problem.k, problem.v, problem.pattern, return_lse=True)
    k, v = torch.full_like(problem.k, torch.nan), torch.full_like(problem.v, torch.nan)
    for start, end in ((0, 7), (7, 8), (8, 9), (9, 13), (13, 24)):
        now = slice(start, end)
        k[:, :, now], v[:, :, now] = problem.k[:, :, now], problem.v[:, :, now]
        out = attend(problem.q[:, :, now], k, v, problem.pattern, lengths=torch.tensor([end], dtype=torch.int32))
        torch.testing.assert_close(out, whole[:, :, now], rtol=1e-11, atol=1e-11)


REFUSED: list[tuple[object, str]] = [
    (torch.tensor([3.0, 3.0]), r"lengths is torch\.float32 of shape \(2,\) on cpu; give an int32 or int64"),
    (torch.tensor([3]), r"lengths is torch\.int64 of shape \(1,\) on cpu; give .* each of the 2 sequences"),
    (torch.tensor([[3, 3]]), r"of shape \(1, 2\)"),
    (torch.tensor([3, 3], device="meta"), r"on meta; give .* on cpu"),
    ([3, 3], r"lengths is a list; give a torch\.Tensor"),
]


@pytest.mark.parametrize(("lengths", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_other_lengths_are_refused(lengths: object, message: str) -> None:
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=message):
        attend(x, x, x, Causal(), lengths=lengths)


@pytest.mark.parametrize("pattern", [Causal(), Window(3)], ids=str)
def test_a_length_beyond_the_capacity_is_the_capacity(pattern: Pattern) -> None:
    x = torch.randn(1, 1, 5, 4)
    assert torch.equal(attend(x, x, x, pattern, lengths=torch.tensor([9])), attend(x, x, x, pattern))
