"""Attention over chosen blocks on a GPU: right each way, blind to what nobody sees, and the same bits each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.indexed import Selection, attend_indexed

pytest.importorskip("triton", reason="the kernels are written in it")

from gossamer.kernels.block_choices.lists import Sharing
from gossamer.kernels.hopper.block_choices import PARTS, HopperChosen
from gossamer.kernels.triton.block_choices import TritonChosen

pytestmark = pytest.mark.gpu

TOKENS, WIDTH = 1024, 128
SIZES = 64, 32
"""Of blocks: Hopper's kernels take the first, portable ones the second."""
GROUPS = (8, 2), (16, 1), (4, 4)


def chosen(runs: int, size: int, near: bool) -> Tensor:
    """Five blocks a query: its own, others at random or the same for neighbours, one twice, one beyond the end."""
    own = torch.arange(TOKENS, device="cuda")[:, None] // size
    span = 256 if near else 1
    drawn = torch.rand(runs, TOKENS // span, 2, device="cuda").repeat_interleave(span, 1)
    others = (drawn * (own + 1)).int()
    others = torch.cat([others, others[..., :1], torch.full_like(others[..., :1], TOKENS)], -1)
    numbers = torch.cat([own.int().expand(runs, -1, -1), others], -1)[None].clone()
    numbers[:, :, 77] = -1
    return numbers


def visible(numbers: Tensor, heads: int, size: int) -> Tensor:
    key = torch.arange(TOKENS, device="cuda")
    seen = (numbers[..., None] == key // size).any(-2) & (key <= key[:, None])
    return seen.repeat_interleave(heads // numbers.shape[1], 1)


def drawn(heads: int, key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (heads, key_heads, key_heads)
    q, k, v = (torch.randn(1, n, TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16) for n in shapes)
    return q, k, v


def test_it_is_what_a_user_gets() -> None:
    (q, k, v), numbers = drawn(8, 2), chosen(2, 64, near=True)
    selection = Selection(numbers, 64, causal=True)
    assert torch.equal(*(attend_indexed(q, k, v, selection, backend=name) for name in (None, "blocks")))


def ours(tensors: tuple[Tensor, ...], numbers: Tensor, size: int, sinks: Tensor | None = None) -> list[Tensor]:
    """Output, log-sum-exp and gradients."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    selection = Selection(numbers, size, causal=True)
    out, lse = attend_indexed(*leaves, selection, sinks=sinks, return_lse=True, backend="blocks")
    torch.manual_seed(1)  # by shape alone: `randn_like` would draw in the order of memory
    grad = torch.randn(out.shape, device="cuda", dtype=out.dtype)
    due = (out * grad).sum() + lse.masked_fill(lse == -torch.inf, 0.0).mul(0.1).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(due, leaves)]


@pytest.fixture(params=["as it is cheaper", "rare apart"])
def sharing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles compute what few of their queries chose where that is cheaper, or never."""
    if request.param == "rare apart":
        monkeypatch.setattr(HopperChosen, "sharing", Sharing(3, PARTS, 2))
        monkeypatch.setattr(TritonChosen, "sharing", Sharing(3))


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("near", [True, False], ids=["neighbours alike", "random"])
@pytest.mark.parametrize("heads", GROUPS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_as_defined(size: int, heads: tuple[int, int], near: bool) -> None:
    tensors, numbers = drawn(*heads), chosen(heads[1], size, near)
    sinks = torch.randn(heads[0], device="cuda")
    seen = visible(numbers, heads[0], size)
    wide = [x.double().requires_grad_() for x in tensors]
    q, k, v = wide
    k, v = (x.repeat_interleave(heads[0] // heads[1], 1) for x in (k, v))
    scores = (q @ k.mT * WIDTH**-0.5).masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(torch.cat([scores, sinks.double().view(1, -1, 1, 1).expand(-1, -1, TOKENS, 1)], -1), -1)
    out = (scores - lse[..., None]).exp() @ v
    found = ours(tensors, numbers, size, sinks)
    torch.manual_seed(1)
    grad = torch.randn(out.shape, device="cuda", dtype=torch.bfloat16)
    wanted = torch.autograd.grad((out * grad).sum() + 0.1 * lse.sum(), wide)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), found, (out, lse, *wanted), strict=True):
        error = ((a.double() - b).norm() / b.norm()).item()
        assert error <= 2 * torch.finfo(torch.bfloat16).eps, f"{name} is off by {error:.1e}"


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("size", SIZES)
def test_exactly_the_chosen_keys_are_seen(size: int) -> None:
    numbers = chosen(2, size, near=False)
    q, k = (torch.zeros(1, n, TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16) for n in (8, 2))
    seen = visible(numbers, 8, size)
    for first in range(0, TOKENS, WIDTH):
        v = torch.zeros_like(k)
        v[:, :, first : first + WIDTH] = torch.eye(WIDTH, device="cuda", dtype=torch.bfloat16)
        out = attend_indexed(q, k, v, Selection(numbers, size, causal=True), backend="blocks")
        assert torch.equal(out > 0, seen[..., first : first + WIDTH])


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("near", [True, False], ids=["neighbours alike", "random"])
@pytest.mark.parametrize("size", SIZES)
def test_what_nobody_sees_may_hold_anything(size: int, near: bool) -> None:
    (q, k, v), numbers = drawn(8, 2), chosen(2, size, near)
    numbers[numbers == 3] = -1
    later = numbers[:, :, 5 * size + size // 4 :]
    later[later == 5] = -1  # some queries of a tile see block 5, whose last keys nobody sees
    seen = visible(numbers, 8, size)
    clean = ours((q, k, v), numbers, size)
    unseen = ~seen.view(1, 2, 4, TOKENS, TOKENS).any(2).any(2)
    assert unseen.any()
    k, v = (x.masked_fill(unseen[..., None], torch.nan) for x in (k, v))
    q = q.masked_fill(~seen.any(-1, keepdim=True), torch.nan)
    for a, b in zip(clean, ours((q, k, v), numbers, size), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", SIZES)
def test_the_future_changes_nothing(size: int) -> None:
    (q, k, v), numbers = drawn(8, 2), chosen(2, size, near=False)
    before = ours((q, k, v), numbers, size)
    k, v = k.clone(), v.clone()
    k[:, :, 700:], v[:, :, 700:] = 3.0, -2.0
    after = ours((q, k, v), numbers, size)
    assert all(torch.equal(a[:, :, :700], b[:, :, :700]) for a, b in zip(before[:2], after[:2], strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_the_same_call_gives_the_same_bits(size: int) -> None:
    tensors, numbers = drawn(8, 2), chosen(2, size, near=False)
    first = ours(tensors, numbers, size)
    for _ in range(100):
        assert all(map(torch.equal, first, ours(tensors, numbers, size)))


@pytest.mark.parametrize("size", SIZES)
def test_runs_of_queries_give_what_all_give_at_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, numbers, sinks = drawn(8, 2), chosen(2, size, near=True), torch.randn(8, device="cuda")
    whole = ours(tensors, numbers, size, sinks)
    monkeypatch.setattr("gossamer.kernels.block_choices.road.queries_at_once", lambda given: 300)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), ours(tensors, numbers, size, sinks), whole, strict=True):
        error = ((a.double() - b.double()).norm() / b.double().norm()).item()
        assert error <= 2 * torch.finfo(torch.bfloat16).eps, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("size", SIZES)
def test_batch_rows_are_the_bits_that_each_is_alone(size: int) -> None:
    rows = [(*drawn(8, 2), chosen(1, size, near)) for near in (True, False, True)]

    def found(q: Tensor, k: Tensor, v: Tensor, numbers: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attend_indexed(*leaves, Selection(numbers, size, causal=True), backend="blocks")
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]

    alone = [torch.cat(x) for x in zip(*(found(*row) for row in rows), strict=True)]
    together = found(*(torch.cat(x) for x in zip(*rows, strict=True)))
    assert all(map(torch.equal, together, alone))
