"""What right means for indexed attention, on any device, in any dtype and by any road.

The definition is dense softmax in plain torch under a mask that is filled in one chosen number at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.indexed import Selection, attend_indexed, attend_latent

RESULTS = "out", "lse", "dq", "dk", "dv", "dsinks"


@dataclass(frozen=True)
class Case:
    """Sizes and options of a problem whose choice is drawn at random."""

    heads: int = 4
    key_heads: int = 2
    queries: int = 11
    keys: int = 60
    width: int = 16
    value_width: int = 12
    chosen: int = 7
    runs: int | None = None
    """Choices of their own: None where all heads share one and `indices` has three axes."""
    block: int = 1
    causal: bool = False
    mask: bool = False
    sinks: bool = False
    latent: bool = False
    """Values are the leading columns of the keys."""
    softcap: float | None = None
    scale: float | None = None
    batch: int = 2
    tidy: bool = False
    """Numbers ascend, none comes twice, and -1 stands behind them alone."""
    dtype: torch.dtype = torch.int32


CASES = {
    "one choice": Case(),
    "a choice a key head": Case(runs=2, dtype=torch.int64),
    "many keys": Case(keys=700),
    "many keys, a choice a key head": Case(keys=700, runs=2, heads=6),
    "shared keys": Case(heads=8, key_heads=1, keys=300),
    "no shared keys": Case(heads=3, key_heads=3),
    "causal": Case(queries=40, keys=60, chosen=20, causal=True),
    "more queries than keys": Case(queries=30, keys=20, causal=True),
    "mask": Case(mask=True, keys=700),
    "sinks": Case(sinks=True, causal=True),
    "softcap": Case(softcap=1.5, scale=0.7, keys=700),
    "latents": Case(heads=8, key_heads=1, latent=True, width=24, value_width=16, keys=400),
    "latents, causal": Case(heads=8, key_heads=1, latent=True, queries=50, keys=50, chosen=24, causal=True, sinks=True),
    "blocks": Case(block=8, chosen=4),
    "blocks, causal": Case(block=8, queries=60, keys=61, chosen=4, causal=True, runs=2, sinks=True),
    "many blocks": Case(block=4, keys=1030, heads=8, chosen=5, runs=1, causal=True),
    "tidy": Case(tidy=True, keys=700, causal=True, queries=600, chosen=8),
    "wide": Case(heads=16, key_heads=1, width=80, value_width=72, keys=300, chosen=40),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs, and the gradients that come back."""

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor | None
    sinks: Tensor | None
    selection: Selection
    grad_out: Tensor
    grad_lse: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What gradients are asked of."""
        named = {"q": self.q, "k": self.k, "v": self.v, "sinks": self.sinks}
        return {name: x for name, x in named.items() if x is not None}

    def to(self, dtype: torch.dtype) -> Problem:
        """The very same numbers in a wider dtype."""
        return replace(self, grad_out=self.grad_out.to(dtype), **{n: x.to(dtype) for n, x in self.inputs.items()})


def draw_indices(case: Case, generator: torch.Generator) -> Tensor:
    """Numbers with repetitions, some outside, and a query that chooses nothing, unless they are to be tidy."""
    shape = case.batch, *(() if case.runs is None else (case.runs,)), case.queries, case.chosen
    count = -(-case.keys // case.block)
    if case.tidy:
        first = torch.randint(count, shape, generator=generator).sort(-1).values
        new = torch.nn.functional.pad(first[..., 1:] != first[..., :-1], (1, 0), value=True)
        first = first.masked_fill(~new, count).sort(-1).values
        return first.masked_fill(first == count, -1).to(case.dtype)
    indices = torch.randint(count, shape, generator=generator)
    indices[..., -1] = indices[..., 0]  # a repetition
    if case.chosen > 2:
        indices[..., 1] = -1
        indices[..., ::3, 2] = count + 5
        indices[..., 1::3, 2] = torch.iinfo(case.dtype).max
        indices[..., 2::3, 2] = torch.iinfo(case.dtype).min
    indices[0, ..., case.queries // 2, :] = -1  # sees nothing
    return indices.to(case.dtype)


def draw(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0) -> Problem:
    """A problem of normal numbers; the same for the same seed, on every device and in every dtype."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    batch, groups, keys = case.batch, case.key_heads, case.keys
    mask = torch.rand(batch, 1, case.queries, keys + 3, generator=generator) < 0.7 if case.mask else None
    indices = draw_indices(case, generator).to(device)
    return Problem(
        case,
        q=normal(batch, case.heads, case.queries, case.width).to(dtype),
        k=normal(batch, groups, keys, case.width).to(dtype),
        v=None if case.latent else normal(batch, groups, keys, case.value_width).to(dtype),
        sinks=normal(case.heads).to(torch.float64 if dtype == torch.float64 else torch.float32) if case.sinks else None,
        selection=Selection(indices, case.block, case.causal, None if mask is None else mask.to(device)),
        grad_out=normal(batch, case.heads, case.queries, case.value_width).to(dtype),
        grad_lse=normal(batch, case.heads, case.queries),
    )


def dense_mask(selection: Selection, keys: int) -> Tensor:
    """[B, N, Q, K] of who sees whom, one number at a time; on the CPU."""
    indices, size = selection.indices.cpu().tolist(), selection.block_size
    batch, runs, queries, _ = selection.indices.shape
    seen = torch.zeros(batch, runs, queries, keys, dtype=torch.bool)
    for b in range(batch):
        for run in range(runs):
            for query in range(queries):
                for number in indices[b][run][query]:
                    if 0 <= number < -(-keys // size):
                        seen[b, run, query, number * size : (number + 1) * size] = True
    if selection.causal:
        seen &= torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    if selection.mask is not None:
        seen &= selection.mask.cpu()[..., :keys]
    return seen


def definition(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, log-sum-exp) of dense softmax under the mask, in the dtype of the inputs."""
    case, heads = problem.case, q.shape[1]
    seen = dense_mask(problem.selection, k.shape[2]).to(q.device)
    k, v, seen = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v, seen))
    scores = q @ k.mT * (q.shape[3] ** -0.5 if case.scale is None else case.scale)
    scores = scores if case.softcap is None else case.softcap * (scores / case.softcap).tanh()
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        sinks = sinks.to(q.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    nothing = scores.isneginf().all(-1, keepdim=True)
    scores = scores.masked_fill(nothing, 0.0)
    weights = scores.softmax(-1).masked_fill(nothing, 0.0)[..., : k.shape[2]]
    return weights @ v, scores.logsumexp(-1).masked_fill(nothing[..., 0], -torch.inf)


def ours(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, **options) -> tuple[Tensor, Tensor]:
    case, settings = problem.case, {"sinks": sinks, "scale": problem.case.scale, "return_lse": True, **options}
    if case.latent:
        return attend_latent(q, k[:, 0], problem.selection, value_width=case.value_width, **settings)
    return attend_indexed(q, k, v, problem.selection, softcap=case.softcap, **settings)


def run(attention: object, problem: Problem, **options: object) -> dict[str, Tensor]:
    """Results and gradients; a log-sum-exp of minus infinity stands as zero."""
    named = {name: x.detach().clone().requires_grad_() for name, x in problem.inputs.items()}
    q, k = named["q"], named["k"]
    v = k[..., : problem.case.value_width] if problem.v is None else named["v"]
    out, lse = attention(problem, q, k, v, named.get("sinks"), **options)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    come = [problem.grad_out, problem.grad_lse.to(lse.dtype)]
    grads = torch.autograd.grad([out, finite], list(named.values()), come)
    return {"out": out.detach(), "lse": finite.detach()} | {f"d{n}": g for n, g in zip(named, grads, strict=True)}


def check_definition(case: Case, dtype: torch.dtype, device: str = "cpu", backend: str | None = None) -> None:
    """No result is further from the definition in float64 than twice what the definition in the dtype itself is.

    A few roundings of the dtype that sums are kept in are allowed besides, of which the definition itself is not free:
    roundings of numbers around 1, as inputs are, because gradients are differences of such.
    """
    problem = draw(case, dtype, device)
    right = run(definition, problem.to(torch.float64))
    found, plain = run(ours, problem, backend=backend), run(definition, problem)
    rounding = 16 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert found.keys() == right.keys()
    for name, wanted in right.items():
        size = wanted.square().mean().sqrt().clamp(min=1.0)
        error, usual = ((y[name].double() - wanted).square().mean().sqrt() for y in (found, plain))
        assert error <= 2 * usual + rounding * size, f"{name}: error {error:.2e}, plain {usual:.2e}, size {size:.2e}"


def check_support(
    case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu", backend: str | None = None
) -> None:
    """With no preference among keys, and values that say which key they are, exactly the visible ones show."""
    problem = draw(replace(case, value_width=case.keys, latent=False, sinks=False), dtype, device)
    eye = torch.eye(case.keys, dtype=dtype, device=device).expand(problem.v.shape)
    out, _ = ours(problem, torch.zeros_like(problem.q), problem.k, eye, None, backend=backend)
    seen = dense_mask(problem.selection, case.keys).to(device)
    assert torch.equal(out > 0, seen.repeat_interleave(case.heads // seen.shape[1], dim=1))


def check_hidden_numbers(
    case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu", backend: str | None = None
) -> None:
    """NaN in keys that nobody sees, and in queries that see nothing, changes no bit of the rest."""
    problem = draw(case, dtype, device)
    seen = dense_mask(problem.selection, case.keys).to(device)
    unseen = ~seen.any(2).repeat_interleave(case.key_heads // seen.shape[1], dim=1)[..., None]
    blind = ~seen.any(3).repeat_interleave(case.heads // seen.shape[1], dim=1)[..., None]
    assert unseen.any() and blind.any()
    named = {"q": blind, "k": unseen, "v": unseen}
    poisoned = {n: x.masked_fill(named[n], torch.nan) for n, x in problem.inputs.items() if n in named}
    clean, found = run(ours, problem, backend=backend), run(ours, replace(problem, **poisoned), backend=backend)
    for name, wanted in clean.items():
        assert torch.equal(found[name], wanted), name
    empty = found["dk"].masked_select(unseen), found["dq"].masked_select(blind)
    assert not any(x.any() for x in empty)


def check_repeatable(
    case: Case, dtype: torch.dtype, device: str = "cpu", backend: str | None = None, repeats: int = 1
) -> None:
    """The same call gives the same bits, forward and backward, so many times again."""
    problem = draw(case, dtype, device)
    once = run(ours, problem, backend=backend)
    for _ in range(repeats):
        again = run(ours, problem, backend=backend)
        assert all(torch.equal(once[name], again[name]) for name in once)
