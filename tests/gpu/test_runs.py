"""Runs of keys that are made on the GPU: right, exact, repeatable, and read without a wait."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer.patterns import Causal
from gossamer.runs import attend_runs
from tests.checks import Problem, check_error, check_repeatable, draw
from tests.gpu.test_kernels import KERNELS, LENGTH, poisoned_memory, setting
from tests.gpu.test_within import nothing_waits

__all__ = ["poisoned_memory"]

pytestmark = pytest.mark.gpu

every_kernel = pytest.mark.parametrize("backend", KERNELS)


def any_runs(batch: int) -> tuple[Tensor, Tensor]:
    """Runs of any lengths, some of them empty."""
    generator = torch.Generator().manual_seed(batch)
    start, stop = (
        torch.randint(0, LENGTH + 1, (batch, LENGTH), generator=generator).sort(-1)[0].int().cuda() for _ in range(2)
    )
    return start, torch.maximum(start, stop)


def chunks(size: int, back: int) -> tuple[Tensor, Tensor]:
    """Each query sees its own chunk and some before it."""
    first = (torch.arange(LENGTH, device="cuda") // size * size)[None].int()
    return (first - back * size).clamp(min=0), (first + size).clamp(max=LENGTH)


RUNS = {
    "any": lambda: any_runs(3),
    "shared": lambda: any_runs(1),
    "chunks": lambda: chunks(64, 1),
    "short chunks": lambda: chunks(10, 0),
    "nothing": lambda: (torch.full((3, LENGTH), 9, dtype=torch.int32, device="cuda"),) * 2,
}


def problem(backend: str, name: str, **changes: object) -> Problem:
    return replace(draw(Causal(), setting(**({"batch": 3, "backend": backend} | changes))), runs=RUNS[name]())


@every_kernel
@pytest.mark.parametrize("name", RUNS)
def test_the_error_is_that_of_plain_attention(backend: str, name: str) -> None:
    check_error(problem(backend, name))


@every_kernel
@pytest.mark.parametrize(
    "changes",
    [{"key_heads": 1}, {"key_heads": 2, "width": 128}, {"dtype": torch.float16}, {"width": 96, "value_width": 40}],
    ids=str,
)
def test_other_shapes(backend: str, changes: dict[str, object]) -> None:
    check_error(problem(backend, "any", **changes))


@pytest.mark.parametrize("name", ["any", "chunks"])
def test_heads_of_512_share_keys(name: str) -> None:
    check_error(problem("triton", name, key_heads=1, width=512))


@every_kernel
def test_exactly_the_runs_are_seen(backend: str) -> None:
    """No tolerance: with scores of zero and slices of the identity as values, the output is the probabilities."""
    start, stop = any_runs(1)
    slices = -(-LENGTH // 64)
    eye = torch.eye(LENGTH, slices * 64, device="cuda", dtype=torch.bfloat16).unflatten(1, (slices, 64)).movedim(1, 0)
    q, v = torch.zeros(slices, 1, LENGTH, 64, device="cuda", dtype=torch.bfloat16), eye[:, None]
    out, lse = attend_runs(q, q, v, start, stop, return_lse=True, backend=backend)
    key = torch.arange(LENGTH, device="cuda")
    mask = (key >= start[0, :, None]) & (key < stop[0, :, None])
    assert torch.equal(out[:, 0].movedim(0, 1).flatten(1)[:, :LENGTH] > 0, mask)
    assert torch.equal(lse[0, 0] == -torch.inf, ~mask.any(-1))


@every_kernel
@pytest.mark.parametrize("name", ["any", "chunks"])
def test_it_repeats_to_the_bit(backend: str, name: str) -> None:
    check_repeatable(problem(backend, name))


@every_kernel
def test_nothing_waits_for_the_device(backend: str) -> None:
    drawn = problem(backend, "any")
    q, k, v = (x.requires_grad_() for x in drawn.inputs.values())

    def call() -> None:
        attend_runs(q, k, v, *drawn.runs, backend=backend).sum().backward()

    call()
    with nothing_waits():
        call()


def test_compiled_whole_it_is_the_same() -> None:
    q, k, v = (x.requires_grad_() for x in draw(Causal(), setting(batch=3)).inputs.values())

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = (torch.arange(q.shape[2], device=q.device, dtype=torch.int32) // 64 * 64)[None]
        return attend_runs(q, k, v, first, (first + 64).clamp(max=q.shape[2])) * 2

    found, right = torch.compile(call, fullgraph=True)(q, k, v), call(q, k, v)
    assert torch.equal(found, right)
    pairs = zip(*(torch.autograd.grad(x.sum(), (q, k, v)) for x in (found, right)), strict=True)
    for a, b in pairs:
        assert torch.equal(a, b)
