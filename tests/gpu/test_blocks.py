"""Hopper's kernels over blocks at sizes at which a program takes many items: what small problems cannot show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.block_sparse import attend_blocks

pytestmark = pytest.mark.gpu

FURTHEST = 4e-3
"""Two roads' results in bfloat16, each rounded once, lie 1.4e-3 to 2.9e-3 of the norm apart."""


def results(problem: list[Tensor], layout: Tensor, block: int, backend: str) -> list[Tensor]:
    """Output and gradients of q, k and v."""
    *inputs, grad_out = problem
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend_blocks(*leaves, layout, block=block, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("key_heads", [16, 4])
def test_many_items_a_program_are_right_and_repeat_to_the_bit(block: int, width: int, key_heads: int) -> None:
    """A tile that is written over while it is read spoils a few rows of a few tiles, and others each time."""
    heads, length = 16, 8192
    torch.manual_seed(0)
    shapes = [(2, count, length, width) for count in (heads, key_heads, key_heads, heads)]
    problem = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    layout = torch.rand(1, heads, length // block, length // block, device="cuda") < 0.2
    layout[..., 0] = True
    first = results(problem, layout, block, "hopper")
    for x, right in zip(first, results(problem, layout, block, "triton"), strict=True):
        assert (x.float() - right.float()).norm() <= FURTHEST * right.float().norm()
    for _ in range(10):
        assert all(map(torch.equal, results(problem, layout, block, "hopper"), first))
