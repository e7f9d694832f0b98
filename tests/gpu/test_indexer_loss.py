"""What an index learns from attention on a GPU: as on the CPU, the same bits each time, and in little memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gossamer.indexed import Selection, indexer_loss, top_keys
from tests.kernels.warm_up_in_interpreter import CASES, Case, check

pytestmark = pytest.mark.gpu

DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize("width", [64, 576])
@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_as_on_the_cpu(dtype: torch.dtype, chosen: bool, width: int) -> None:
    q, k = torch.randn(2, 8, 150, width).to(dtype), torch.randn(2, 1, 170, width).to(dtype)
    index = torch.randn(2, 4, 150, 128).to(dtype), torch.randn(2, 170, 128).to(dtype)
    weights = torch.randn(2, 150, 4).to(torch.promote_types(dtype, torch.float32)) / 64
    scores = q.double() @ k.double().mT * width**-0.5
    future = torch.ones(150, 170, dtype=torch.bool).triu(21)
    lse = scores.masked_fill(future, -torch.inf).logsumexp(-1).to(weights.dtype)
    selection = Selection(top_keys(*index, weights, 40)) if chosen else None
    found = {}
    for name, device, own in (
        ("exact", "cpu", torch.float64), ("cpu", "cpu", None), ("cuda", "cuda", None), ("again", "cuda", None)
    ):  # fmt: skip
        given = [x.to(device, own or x.dtype).requires_grad_() for x in (*index, weights)]
        there = None if selection is None else Selection(selection.indices.to(device))
        heads = [x.to(device, own or x.dtype) for x in (q, k, lse)]
        # As float16 is trained: what is learned of one pair alone is below its numbers.
        loss = 2.0**14 * indexer_loss((given[0], given[1], given[2]), *heads, there)
        found[name] = [x.detach().cpu() for x in (loss, *torch.autograd.grad(loss, given))]
    for exact, here, there, again in zip(*found.values(), strict=True):
        assert torch.equal(there, again)
        off, usual = ((x.double() - exact).norm() / exact.norm() for x in (there, here))
        assert off <= 2 * usual + width**0.5 * torch.finfo(there.dtype).eps  # a walk of so many sums


@pytest.mark.parametrize("width", [64, 576])
@pytest.mark.parametrize("chosen", [False, True])
def test_a_hundred_calls_give_the_same_bits(chosen: bool, width: int) -> None:
    q, k = (torch.randn(2, heads, 400, width, device="cuda", dtype=torch.bfloat16) for heads in (16, 1))
    index = [torch.randn(2, *size, 128, device="cuda", dtype=torch.bfloat16) for size in ((64, 400), (400,))]
    given = [*index, torch.randn(2, 400, 64, device="cuda") / 64]
    selection = Selection(top_keys(given[0], given[1], given[2], 130)) if chosen else None
    lse, first = torch.full((2, 16, 400), 6.0, device="cuda"), []
    for _ in range(100):
        leaves = [x.clone().requires_grad_() for x in given]
        loss = indexer_loss((leaves[0], leaves[1], leaves[2]), q, k, lse, selection)
        found = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        first = first or found
        assert all(map(torch.equal, first, found))


def test_memory_is_never_that_of_all_pairs() -> None:
    """Of 16,384 × 16,384 pairs, 1 GiB for each of 32 heads, no more than that is held."""
    q, k = (torch.randn(1, heads, 16_384, 64, device="cuda", dtype=torch.bfloat16) for heads in (32, 4))
    index = [torch.randn(1, *size, 64, device="cuda", dtype=torch.bfloat16) for size in ((8, 16_384), (16_384,))]
    weights, lse = torch.randn(1, 16_384, 8, device="cuda"), torch.full((1, 32, 16_384), 12.0, device="cuda")
    given = [x.requires_grad_() for x in (*index, weights)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    indexer_loss((given[0], given[1], given[2]), q, k, lse).backward()
    assert torch.cuda.max_memory_allocated() - before < 2**30


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_are_those_of_plain_torch(name: str, dtype: torch.dtype) -> None:
    check(replace(CASES[name], dtype=dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("index_width", [64, 128, 256])
def test_the_kernels_take_every_width(index_width: int, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and index_width > 128:
        pytest.skip("float32 heads are 128 wide at most")
    check(Case(300, 333, 16, 1, 576, 64, index_width, dtype=dtype), "cuda")
