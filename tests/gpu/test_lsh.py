"""Hashed attention on the GPU: right in every dtype, the same bits at every call, and never waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gossamer.nn import LSHAttention
from gossamer.ops.lsh import road
from gossamer.selectors import LSH
from tests.hashed_checks import (
    CASES,
    Case,
    check_definition,
    check_hash,
    check_repeatable,
    check_support,
    draw,
    ours,
    run,
)

pytestmark = pytest.mark.gpu

WIDE = {
    "64 wide": Case(LSH.trax(2, 64), length=300, rounds=2, width=64, value_width=64),
    "64 wide, paper": Case(LSH.paper(2, 64), length=300, rounds=2, width=64, value_width=64),
    "128 wide": Case(LSH.paper(2, 128), length=300, rounds=2, width=128, value_width=128),
    "256 wide": Case(LSH.trax(2, 32), length=100, rounds=2, width=256, value_width=256),
}
DTYPES = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    "name", ["paper, both ways", "trax, a short last chunk", "trax, both ways", "wraps, both ways"]
)
def test_float32_is_the_definition(name: str) -> None:
    problem = draw(CASES[name], torch.float32, "cuda")
    assert road(problem.x, problem.v).name == "triton"
    check_definition(CASES[name], torch.float32, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WIDE)
def test_every_dtype_is_the_definition(name: str, dtype: torch.dtype) -> None:
    check_definition(WIDE[name], dtype, "cuda")


@pytest.mark.parametrize("name", WIDE)
def test_the_two_roads_agree(name: str) -> None:
    problem = draw(replace(WIDE[name], length=2000), torch.float32, "cuda")
    found, right = (run(ours, problem, backend=backend) for backend in ("triton", "tiled"))
    for result, x in right.items():
        torch.testing.assert_close(found[result], x, rtol=1e-5, atol=2e-5, msg=result)


@pytest.mark.parametrize("name", ["64 wide", "64 wide, paper"])
def test_results_repeat_to_the_bit(name: str) -> None:
    check_repeatable(replace(WIDE[name], length=5000), torch.bfloat16, "cuda")


@pytest.mark.parametrize("name", ["padded, paper", "padded, trax", "nothing there", "all alone"])
def test_exactly_those_that_share_chunks_are_seen(name: str) -> None:
    check_support(CASES[name], "cuda", torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("counts", [(64,), (32, 64), (300, 1)], ids=str)
def test_the_hash_is_the_axis_that_reaches_furthest(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    check_hash(counts, dtype, "cuda", width=64)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_layer_waits_for_nothing() -> None:
    layer = LSHAttention(128, 2, LSH.trax(2, 64)).to("cuda", torch.bfloat16)
    x = torch.randn(2, 1000, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    within = torch.tensor([[0, 900], [30, 1000]], dtype=torch.int32, device="cuda")
    layer(x, within=within).sum().backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x, within=within, buckets=layer.draw(x)).sum().backward()
        layer(x, within=within).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
