"""Attention over chosen latents on Hopper: as float64 says, exactly the chosen pairs, and the same bits each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.indexed import Selection, attend_latent

pytestmark = pytest.mark.gpu

WIDTH, VALUE, SCALE = 576, 512, 0.05

CASES = {
    # (batch, heads, queries, keys, chosen)
    "128 heads": (1, 128, 300, 300, 256),
    "few latents": (2, 64, 70, 40, 130),
    "one part half empty": (1, 100, 130, 190, 65),
    "two queries a tile": (2, 32, 131, 131, 64),
    "four queries a tile": (1, 16, 257, 300, 100),
    "eight queries a tile": (1, 8, 97, 97, 33),
    "three heads": (2, 3, 65, 129, 17),
    "one query": (1, 128, 1, 1000, 500),
    "more chosen than there are": (1, 64, 17, 17, 64),
}


def _inputs(case: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, keys, chosen = CASES[case]
    q = torch.randn(batch, heads, queries, WIDTH, device="cuda", dtype=dtype)
    latents = torch.randn(batch, keys, WIDTH, device="cuda", dtype=dtype)
    return q, latents, torch.randint(-2, keys + 2, (batch, queries, chosen), device="cuda")


def _seen(indices: Tensor, keys: int, causal: bool) -> Tensor:
    """[B, Q, K]"""
    batch, queries, _ = indices.shape
    named = torch.where((indices < 0) | (indices >= keys), keys, indices).long()
    seen = torch.zeros(batch, queries, keys + 1, dtype=torch.bool, device=indices.device)
    seen = seen.scatter_(2, named, True)[..., :keys]
    if causal:
        here = torch.arange(keys - queries, keys, device=indices.device)
        seen &= torch.arange(keys, device=indices.device) <= here[:, None]
    return seen


def _oracle(q: Tensor, latents: Tensor, seen: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, lse) in the inputs' own precision, over all pairs."""
    scores = torch.einsum("bhqd,bkd->bhqk", q, latents) * SCALE
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    if sinks is not None:
        sink = sinks[None, :, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], -1)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()[..., : latents.shape[1]]
    return torch.einsum("bhqk,bkd->bhqd", weights, latents[..., :VALUE]), lse


def _error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_float64(case: str, causal: bool, sinks: bool) -> None:
    q, latents, indices = _inputs(case)
    sink = torch.randn(q.shape[1], device="cuda") if sinks else None
    grad, grad_lse = (
        torch.randn(*q.shape[:3], VALUE, device="cuda", dtype=q.dtype),
        torch.randn(q.shape[:3], device="cuda"),
    )
    seen, found = _seen(indices, latents.shape[1], causal), {}
    for name, dtype in (("here", q.dtype), ("plain", q.dtype), ("float64", torch.float64)):
        tensors = [x.to(dtype).requires_grad_() for x in (q, latents)]
        s = None if sink is None else sink.to(torch.float32 if name == "here" else dtype).requires_grad_()
        if name == "here":
            chosen = Selection(indices, causal=causal)
            out, lse = attend_latent(
                *tensors, chosen, value_width=VALUE, scale=SCALE, sinks=s, return_lse=True, backend="hopper"
            )
        else:
            out, lse = _oracle(*tensors, seen, s)
        wanted = [*tensors] if s is None else [*tensors, s]
        finite = torch.where(lse == -torch.inf, 0.0, lse)
        total = (out * grad.to(dtype)).sum(dtype=torch.float64) + (finite * grad_lse).sum(dtype=torch.float64)
        found[name] = [out.detach(), *torch.autograd.grad(total, wanted)]
        found[name + " lse"] = lse.detach()
    assert torch.equal(found["here lse"] == -torch.inf, found["float64 lse"] == -torch.inf)
    here, wanted = (torch.nan_to_num(found[x], neginf=0.0) for x in ("here lse", "float64 lse"))
    assert (here - wanted).abs().max() < 1e-4
    for number, (here, plain, wanted) in enumerate(zip(found["here"], found["plain"], found["float64"], strict=True)):
        assert not here.isnan().any()
        assert _error(here, wanted) <= (2 if number == 0 else 3) * _error(plain, wanted) + 2**-8


@pytest.mark.parametrize("case", ["128 heads", "two queries a tile", "three heads"])
def test_it_sees_exactly_the_chosen_pairs(case: str) -> None:
    q, latents, indices = _inputs(case)
    keys = latents.shape[1]
    q.zero_()
    for first in range(0, keys, VALUE):  # values are slices of the identity: outputs are the weights themselves
        latents.zero_()
        some = torch.arange(first, min(first + VALUE, keys), device="cuda")
        latents[:, some, some - first] = 1.0
        out = attend_latent(q, latents, Selection(indices), value_width=VALUE, scale=SCALE, backend="hopper")
        seen = _seen(indices, keys, False)[:, None, :, first : first + VALUE]
        assert torch.equal(out[..., : len(some)] > 0, seen.expand(*out.shape[:3], len(some)))


@pytest.mark.parametrize("case", ["128 heads", "four queries a tile"])
def test_the_same_bits_a_hundred_times(case: str) -> None:
    q, latents, indices = _inputs(case)
    grad, first = torch.randn(*q.shape[:3], VALUE, device="cuda", dtype=q.dtype), None
    for _ in range(100):
        a, b = q.clone().requires_grad_(), latents.clone().requires_grad_()
        out = attend_latent(a, b, Selection(indices, causal=True), value_width=VALUE, scale=SCALE, backend="hopper")
        found = [out.detach(), *torch.autograd.grad(out, (a, b), grad)]
        first = first or found
        assert all(torch.equal(x, y) for x, y in zip(first, found, strict=True))


@pytest.mark.parametrize("case", ["128 heads", "two queries a tile"])
def test_what_nobody_sees_may_be_anything(case: str) -> None:
    """Latents that nobody chose, and queries that see nothing, are NaN; the others' results are as before."""
    q, latents, indices = _inputs(case)
    indices[:, :, :] = indices % (latents.shape[1] // 2)
    indices[:, 3] = -1
    found = []
    for poison in (0.0, float("nan")):
        a, b = q.clone(), latents.clone()
        a[:, :, 3], b[:, latents.shape[1] // 2 :] = poison, poison
        a.requires_grad_(), b.requires_grad_()
        out = attend_latent(a, b, Selection(indices), value_width=VALUE, scale=SCALE, backend="hopper")
        grad = torch.ones_like(out)
        grad[:, :, 3] = poison
        found.append([out.detach(), *torch.autograd.grad(out, (a, b), grad)])
    assert all(torch.equal(x, y) and not y.isnan().any() for x, y in zip(*found, strict=True))


def test_sinks_may_lie_apart() -> None:
    q, latents, indices = _inputs("three heads")
    sinks, chosen = torch.randn(6, device="cuda")[::2], Selection(indices)
    found, right = (
        attend_latent(q, latents, chosen, value_width=VALUE, scale=SCALE, sinks=x, backend="hopper")
        for x in (sinks, sinks.contiguous())
    )
    assert torch.equal(found, right)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", ["128 heads", "two queries a tile"])
def test_a_query_without_numbers_says_so(case: str, poison: float) -> None:
    """Its log-sum-exp is no number either: minus infinity would say that it sees nothing. Others are as before."""
    q, latents, indices = _inputs(case)
    latents.abs_()
    chosen = Selection(indices.abs() % latents.shape[1])
    right, right_lse = attend_latent(q, latents, chosen, value_width=VALUE, return_lse=True, backend="hopper")
    q[:, :, 5, 7] = poison
    out, lse = attend_latent(q, latents, chosen, value_width=VALUE, return_lse=True, backend="hopper")
    assert out[:, :, 5].isnan().all() and lse[:, :, 5].isnan().all()
    others = torch.arange(q.shape[2], device="cuda") != 5
    assert torch.equal(out[:, :, others], right[:, :, others])
    assert torch.equal(lse[:, :, others], right_lse[:, :, others])


@pytest.mark.parametrize("heads", [128, 16])
def test_a_latent_that_everybody_chose_has_its_gradient(heads: int) -> None:
    """And those that a block of queries chose: lists that are long are summed in blocks."""
    q = torch.randn(1, heads, 1000, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    latents = torch.randn(1, 90, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    indices = torch.randint(90, (1, 1000, 3), device="cuda")
    indices[:, :, 0], indices[:, 300:700, 1] = 7, 50
    grad = torch.randn(1, heads, 1000, VALUE, device="cuda", dtype=torch.bfloat16)
    found = []
    for _ in range(2):
        out = attend_latent(q, latents, Selection(indices), value_width=VALUE, scale=SCALE, backend="hopper")
        found.append(torch.autograd.grad(out, latents, grad)[0])
    exact = [x.detach().double().requires_grad_() for x in (q, latents)]
    out = _oracle(*exact, _seen(indices, 90, causal=False), None)[0]
    right = torch.autograd.grad(out, exact[1], grad.double())[0]
    assert torch.equal(*found)
    for x, wanted in ((found[0], right), *((found[0][:, key], right[:, key]) for key in (7, 50))):
        assert _error(x, wanted) < 2 * torch.finfo(torch.bfloat16).eps


def test_many_sequences_have_gradients() -> None:
    q = torch.randn(513, 128, 1, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    latents = torch.randn(513, 2, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    chosen = Selection(torch.tensor([[[0]]], device="cuda").expand(513, 1, 1))  # of one key the weight is 1
    out = attend_latent(q, latents, chosen, value_width=VALUE, scale=SCALE, backend="hopper")
    dq, dlatents = torch.autograd.grad(out, (q, latents), torch.ones_like(out))
    eps = torch.finfo(torch.bfloat16).eps
    assert dq.abs().max() < eps and not dlatents[:, 1].any() and dlatents[:, 0, VALUE:].abs().max() < eps
    assert (dlatents[:, 0, :VALUE] - 128.0).abs().max() <= 128.0 * eps


def test_later_keys_change_nothing_before_them() -> None:
    q, latents, indices = _inputs("128 heads")
    chosen = Selection(indices, causal=True)
    before = attend_latent(q, latents, chosen, value_width=VALUE, backend="hopper")
    latents[:, 200:] += 1.0
    after = attend_latent(q, latents, chosen, value_width=VALUE, backend="hopper")
    assert torch.equal(before[:, :, :200], after[:, :, :200]) and not torch.equal(before, after)


def test_chunks_of_groups_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.kernels.hopper import latent

    q, latents, indices = _inputs("two queries a tile")
    found = []
    for nbytes in (1 << 32, 1 << 20):
        monkeypatch.setattr(latent, "SCRATCH", nbytes)
        a, b = q.clone().requires_grad_(), latents.clone().requires_grad_()
        out = attend_latent(a, b, Selection(indices), value_width=VALUE, scale=SCALE, backend="hopper")
        found.append(torch.autograd.grad(out.float().square().sum(), (a, b)))
    assert torch.equal(found[0][0], found[1][0])
    assert _error(found[0][1], found[1][1]) < 1e-3  # sums of other parts
