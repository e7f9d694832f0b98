"""What right means for an index's scores and the mass of attention at chosen keys, on any device and by any road."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.indexed import Selection, attention_mass, index_scores
from tests.indexed_checks import Case, definition, dense_mask, draw


@dataclass(frozen=True)
class Sizes:
    """Of a problem whose choice is drawn at random: `heads` are an index's, or those of attention."""

    heads: int = 4
    key_heads: int = 1
    queries: int = 7
    keys: int = 40
    width: int = 16
    chosen: int = 6
    causal: bool = False
    mask: bool = False
    relu: bool = True
    batch: int = 2

    @property
    def case(self) -> Case:
        """The same for attention."""
        return Case(
            self.heads, self.key_heads, self.queries, self.keys, self.width, self.width, self.chosen,
            causal=self.causal, mask=self.mask, batch=self.batch, scale=0.3,
        )  # fmt: skip


SIZES = {
    "plain": Sizes(),
    "one head": Sizes(heads=1),
    "many heads": Sizes(heads=70, chosen=20, queries=4),
    "no relu": Sizes(relu=False),
    "causal": Sizes(causal=True, queries=30),
    "mask": Sizes(mask=True),
    "wide": Sizes(width=40, chosen=33),
}


def standing(selection: Selection, keys: int) -> list[list[list[int]]]:
    """For each place its key, or -1 where none counts, one number at a time."""
    seen, found = dense_mask(selection, keys)[:, 0], []
    for visible, rows in zip(seen, selection.indices[:, 0].tolist(), strict=True):
        found.append([])
        for shown, numbers in zip(visible, rows, strict=True):
            taken: list[int] = []
            for number in numbers:
                counts = 0 <= number < keys and number not in taken and bool(shown[number])
                taken.append(number if counts else -1)
            found[-1].append(taken)
    return found


def dense_scores(q: Tensor, k: Tensor, weights: Tensor, places: Tensor, relu: bool) -> Tensor:
    """Scores of all pairs, of which those of the places are taken."""
    products = torch.einsum("bjqd,bkd->bqjk", q, k)
    products = products.relu() if relu else products
    every = torch.einsum("bqjk,bqj->bqk", products, weights.to(q.dtype))
    return every.gather(-1, places.clamp(min=0)).masked_fill(places < 0, 0.0)


def run_scores(sizes: Sizes, dtype: torch.dtype, device: str, backend: str | None) -> tuple[list[Tensor], ...]:
    """(results and gradients of ours, of the definition in the dtype, and of the definition in float64)."""
    problem = draw(sizes.case, dtype, device)
    wide = torch.promote_types(dtype, torch.float32)
    weights = problem.grad_lse.transpose(1, 2).to(wide)
    places = torch.tensor(standing(problem.selection, sizes.keys), device=device)
    come = torch.randn(places.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)
    found = []
    for kind in ("ours", dtype, torch.float64):
        cast = dtype if kind == "ours" else kind
        given = problem.q.to(cast), problem.k[:, 0].to(cast), weights.to(wide if kind == "ours" else cast)
        q, k, w = (x.clone().requires_grad_() for x in given)
        if kind == "ours":
            scores = index_scores(q, k, w, problem.selection, relu=sizes.relu, backend=backend)
            assert torch.equal(scores == -torch.inf, places < 0) and scores.dtype == wide
            scores = scores.masked_fill(places < 0, 0.0)
        else:
            scores = dense_scores(q, k, w, places, sizes.relu)
        grads = torch.autograd.grad(scores, (q, k, w), come.to(scores.dtype))
        found.append([scores.detach(), *grads])
    return tuple(found)


def check_scores(sizes: Sizes, dtype: torch.dtype, device: str = "cpu", backend: str | None = None) -> None:
    """No result is further from the definition in float64 than twice what the definition in the dtype itself is."""
    ours, plain, right = run_scores(sizes, dtype, device, backend)
    for name, *results in zip(("scores", "dq", "dk", "dweights"), ours, plain, right, strict=True):
        no_further(name, *results, dtype=dtype)


def no_further(name: str, found: Tensor, plain: Tensor, right: Tensor, *, dtype: torch.dtype) -> None:
    rounding = 16 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    size = right.square().mean().sqrt()
    error, usual = ((x.double() - right).square().mean().sqrt() for x in (found, plain))
    assert error <= 2 * usual + rounding * size, f"{name}: error {error:.2e}, plain {usual:.2e}, size {size:.2e}"


def check_mass(sizes: Sizes, dtype: torch.dtype, device: str = "cpu", backend: str | None = None) -> None:
    """As the definition's probabilities say; with the log-sum-exp of the chosen keys."""
    problem = draw(sizes.case, dtype, device)
    places = torch.tensor(standing(problem.selection, sizes.keys), device=device)
    double = problem.to(torch.float64)
    eye = torch.eye(sizes.keys, dtype=torch.float64, device=device).expand(*problem.k.shape[:3], sizes.keys)
    probabilities, lse = definition(double, double.q, double.k, eye, None)
    right = probabilities.sum(1).gather(-1, places.clamp(min=0)).masked_fill(places < 0, 0.0)
    right = right / right.sum(-1, keepdim=True).clamp(min=1e-300)
    wide = torch.promote_types(dtype, torch.float32)
    found = attention_mass(problem.q, problem.k, lse.to(wide), problem.selection, scale=0.3, backend=backend)
    assert found.dtype == wide and not found.requires_grad
    assert torch.equal(found == 0, places < 0)
    terms = torch.einsum("bhqd,bkd->bhqk", double.q.abs(), double.k.abs().amax(1))  # sizes that a score adds up
    rounding = 64 + 4 * 0.3 * terms.amax().item()
    torch.testing.assert_close(found.double(), right, rtol=rounding * torch.finfo(wide).eps, atol=1e-30)


def check_hidden_numbers(sizes: Sizes, dtype: torch.dtype, device: str = "cpu", backend: str | None = None) -> None:
    """NaN in keys that nobody sees, and in gradients where no key counts, changes no bit."""
    problem = draw(replace(sizes, queries=3).case, dtype, device)
    seen = dense_mask(problem.selection, sizes.keys)[:, 0].any(1).to(device)
    assert not seen.all()
    weights = problem.grad_lse.transpose(1, 2).to(torch.promote_types(dtype, torch.float32))
    found = []
    for hidden in (0.0, torch.nan):
        k = problem.k[:, 0].masked_fill(~seen[..., None], hidden)
        q, k, w = (x.clone().requires_grad_() for x in (problem.q, k, weights))
        scores = index_scores(q, k, w, problem.selection, backend=backend)
        come = torch.full_like(scores, 2.0).masked_fill(scores == -torch.inf, hidden)
        grads = torch.autograd.grad(scores, (q, k, w), come)
        lse = problem.grad_lse.to(w.dtype)
        mass = attention_mass(problem.q, k.detach()[:, None], lse, problem.selection, scale=0.3, backend=backend)
        found.append([scores.detach(), *grads, mass])
    assert all(map(torch.equal, *found))
