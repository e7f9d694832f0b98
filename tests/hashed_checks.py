"""What right means for hashed attention, on any device, in any dtype and by any road."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.hashed import attend_hashed
from gossamer.selectors import LSH
from tests.hashed_in_dense import Rules, hashed_in_dense

RESULTS = "out", "lse", "dx", "dv"


@dataclass(frozen=True)
class Case:
    """Sizes of a problem whose buckets are drawn at random."""

    lsh: LSH
    length: int = 70
    rounds: int = 3
    buckets: int = 5
    width: int = 16
    value_width: int = 16
    within: tuple[tuple[int, int], ...] | None = None
    batch: int = 2
    heads: int = 2

    @property
    def rules(self) -> Rules:
        """The same for the definition."""
        lsh = self.lsh
        scale = self.width**-0.5 if lsh.scale is None else lsh.scale
        same = lsh.chunk, lsh.before, lsh.after, lsh.edge, lsh.causal, lsh.other_buckets, lsh.repeats
        return Rules(*same, scale, lsh.epsilon)


WRAPS = LSH(3, 16, edge="wraps", other_buckets=True, repeats=True)
CASES = {
    "paper": Case(LSH.paper(3, 16)),
    "paper, both ways": Case(LSH.paper(3, 16, causal=False), width=13, value_width=24),
    "paper, short chunks": Case(LSH.paper(2, 5), length=42, rounds=2),
    "trax": Case(LSH.trax(3, 16), length=64),
    "trax, a short last chunk": Case(LSH.trax(3, 16)),
    "trax, both ways": Case(LSH.trax(2, 24, causal=False, before=2, after=1), length=100, rounds=2),
    "trax, few chunks": Case(LSH.trax(1, 32, before=2, after=2, causal=False), length=40, rounds=1),
    "lucidrains": Case(LSH.lucidrains(1, 32), rounds=1),
    "wraps": Case(WRAPS),
    "wraps, both ways": Case(replace(WRAPS, causal=False, after=1)),
    "stops": Case(LSH(3, 16, other_buckets=True, repeats=True)),
    "own buckets, repeated": Case(LSH(3, 16, repeats=True)),
    "all buckets, once": Case(LSH(3, 16, other_buckets=True, after=1, causal=False)),
    "padded, paper": Case(LSH.paper(3, 16), within=((0, 41), (9, 70))),
    "padded, trax": Case(LSH.trax(3, 16), within=((0, 41), (9, 70))),
    "nothing there": Case(LSH.trax(2, 16, causal=False), rounds=2, within=((0, 0), (69, 70))),
    "one bucket": Case(LSH.paper(2, 96), rounds=2, buckets=1),
    "all alone": Case(LSH.paper(3, 16), length=40, buckets=10**6),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs, and the gradients that come back."""

    case: Case
    x: Tensor
    v: Tensor
    buckets: Tensor
    within: Tensor | None
    grad_out: Tensor
    grad_lse: Tensor

    def to(self, dtype: torch.dtype) -> Problem:
        """The very same numbers in a wider dtype."""
        return replace(self, x=self.x.to(dtype), v=self.v.to(dtype), grad_out=self.grad_out.to(dtype))


def draw(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0) -> Problem:
    """A problem of normal numbers; the same for the same seed, on every device and in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    lanes = case.batch, case.heads

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    return Problem(
        case,
        x=normal(*lanes, case.length, case.width).to(dtype),
        v=normal(*lanes, case.length, case.value_width).to(dtype),
        buckets=torch.randint(case.buckets, (*lanes, case.rounds, case.length), generator=generator).to(device),
        within=None if case.within is None else torch.tensor(case.within, dtype=torch.int32, device=device),
        grad_out=normal(*lanes, case.length, case.value_width).to(dtype),
        grad_lse=normal(*lanes, case.length),
    )


def ours(problem: Problem, x: Tensor, v: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
    lsh = problem.case.lsh
    return attend_hashed(x, v, problem.buckets, lsh, within=problem.within, return_lse=True, backend=backend)


def definition(problem: Problem, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    spans = problem.case.within or [None] * x.shape[0]
    parts = zip(x, v, problem.buckets, spans, strict=True)
    found = [hashed_in_dense(x_, v_, b, problem.case.rules, span) for x_, v_, b, span in parts]
    out, lse = (torch.stack(each) for each in zip(*found, strict=True))
    return out, lse


def run(attention: object, problem: Problem, **options: object) -> dict[str, Tensor]:
    """Results and gradients. The log-sum-exp of tokens that see nobody else is left out: it is a mere penalty."""
    x, v = (y.detach().clone().requires_grad_() for y in (problem.x, problem.v))
    out, lse = attention(problem, x, v, **options)
    lse = torch.where(lse > -5e4, lse, 0.0)
    dx, dv = torch.autograd.grad([out, lse], [x, v], [problem.grad_out, problem.grad_lse.to(lse.dtype)])
    return dict(zip(RESULTS, (out.detach(), lse.detach(), dx, dv), strict=True))


def check_definition(case: Case, dtype: torch.dtype, device: str = "cpu", backend: str | None = None) -> None:
    """No result is further from the definition in float64 than twice what the definition in the dtype itself is.

    One rounding of the dtype that scores are computed in is allowed besides: 16 of float64, of which the definition
    itself is not free.
    """
    problem = draw(case, dtype, device)
    right = run(definition, problem.to(torch.float64))
    found, plain = run(ours, problem, backend=backend), run(definition, problem)
    rounding = 16 * torch.finfo(dtype).eps if dtype == torch.float64 else torch.finfo(torch.float32).eps
    for name in RESULTS:
        size = right[name].double().square().mean().sqrt()
        error, usual = ((y[name].double() - right[name]).square().mean().sqrt() for y in (found, plain))
        assert error <= 2 * usual + rounding * size, f"{name}: error {error:.2e}, plain {usual:.2e}, size {size:.2e}"


def check_repeatable(case: Case, dtype: torch.dtype, device: str, backend: str | None = None) -> None:
    """The same call gives the same bits, forward and backward."""
    problem = draw(case, dtype, device)
    once, again = (run(ours, problem, backend=backend) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in RESULTS)


def check_support(
    case: Case, device: str = "cpu", dtype: torch.dtype = torch.float64, backend: str | None = None
) -> None:
    """A token's output changes with the values of exactly those that the definition lets it see."""
    problem = draw(replace(case, value_width=case.length), dtype, device)
    identity = torch.eye(case.length, dtype=dtype, device=device).expand(problem.v.shape)
    seen, _ = ours(problem, problem.x, identity, backend)
    right, _ = definition(problem.to(torch.float64), problem.x.double(), identity.double())
    assert torch.equal(seen != 0, right.to(dtype) != 0)


def check_hash(counts: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", width: int = 20) -> None:
    """Each bucket's axis is the one that reaches furthest, in float64 and but for a rounding of float32."""
    lsh, generator = LSH.paper(3, 8, counts), torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 150, width, generator=generator).to(device, dtype)
    rotations = lsh.rotations(2, width, 150, dtype=dtype, generator=generator).to(device)
    buckets, first = torch.ops.gossamer.lsh_hash(x, rotations, counts), 0
    assert buckets.min() >= 0 and buckets.max() < lsh.most(150)
    for count in counts:
        half = rotations[..., first : first + count // 2].double()
        rotated = torch.einsum("bhnd,hdrf->bhrnf", x.double(), half)
        reach = torch.cat([rotated, -rotated], -1) if count > 1 else rotated.new_zeros(*buckets.shape, 1)
        chosen = reach.gather(-1, (buckets % count)[..., None])[..., 0]
        assert (reach.amax(-1) - chosen <= 1e-5 * reach.abs().amax()).all()
        assert count < 2 or (buckets % count).unique().numel() > 1
        buckets, first = buckets // count, first + count // 2
