"""Blocks on the GPU: tables without a wait, layouts of run time, and CUDA graphs that follow a layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gossamer import Unsupported
from gossamer.block_sparse import attend_blocks
from gossamer.kernels.block_tables import BlockTable, LayoutTables, block_tables
from gossamer.kernels.problem import Layout
from gossamer.patterns import PerHead, RandomBlocks, Window
from gossamer.plan import Blocks, plan
from tests.checks import Setting, draw
from tests.gpu.test_kernels import captured, poisoned_memory  # noqa: F401  every kernel finds its memory poisoned
from tests.layouts import CASES, SUPPORT, Shown, attended, check_layout, check_layout_support

pytestmark = pytest.mark.gpu

ROADS = [None, "hopper", "triton"]
LARGE = {
    f"{name} × {block} × {width}": (replace(CASES["one for all"][0], queries=600, width=width), Shown(block, **own))
    for name, own in {
        "one for all": {},
        "a layout a head": {"own_heads": True},
        "each its own, within": {"own_batch": True, "own_heads": True, "within": ((70, 530), (0, 600))},
    }.items()
    for block, width in ((64, 64), (64, 128), (128, 64), (128, 128))
}
"""Sizes that Hopper's kernels take."""


def on_the_gpu(name: str, backend: str | None, dtype: torch.dtype, key_heads: int = 4) -> tuple[Setting, Shown]:
    """The case there, or a skip with the backend's reason where it refuses."""
    setting, shown = {**CASES, **LARGE}[name]
    key_heads = key_heads if name in LARGE else setting.key_heads or setting.heads
    setting = replace(setting, device="cuda", backend=backend, dtype=dtype, key_heads=key_heads)
    try:
        attended(draw(shown.pattern(setting, 0), setting), setting, shown)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    return setting, shown


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_layouts_of_every_kind_are_right(name: str, dtype: torch.dtype) -> None:
    check_layout(*on_the_gpu(name, "triton", dtype))


@pytest.mark.parametrize("backend", ROADS)
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("name", LARGE)
def test_large_blocks_are_right(name: str, key_heads: int, backend: str | None) -> None:
    check_layout(*on_the_gpu(name, backend, torch.bfloat16, key_heads))


@pytest.mark.parametrize("name", SUPPORT)
def test_exactly_the_visible_pairs_are_seen(name: str) -> None:
    check_layout_support(*on_the_gpu(name, "triton", torch.float32))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_layout_becomes_tables_without_a_wait() -> None:
    """The first of its shape may wait."""

    def sides_of(layout: torch.Tensor) -> tuple[BlockTable, BlockTable]:
        tables = LayoutTables(Layout(layout, 64), batch=2, heads=4)
        return tables.by_queries, tables.by_keys

    layout = torch.rand(2, 4, 40, 30, device="cuda") < 0.3
    sides_of(~layout)
    try:
        torch.cuda.set_sync_debug_mode("error")
        sides = sides_of(layout)
        with pytest.raises(RuntimeError, match="synchronizing"):
            layout.any().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [int(side.counts.sum()) for side in sides] == [int(layout.sum())] * 2


def test_a_plan_s_tables_are_those_of_a_cpu() -> None:
    made = plan(PerHead([(RandomBlocks(64, 3, seed) & ~Window(9), 1) for seed in range(4)]), 1000, 1000, 4)
    term = made.groups[0].terms[0]
    assert isinstance(term, Blocks)
    found, right = (block_tables(term, made, torch.device(device)) for device in ("cuda", "cpu"))
    for side, other in zip(found, right, strict=True):
        for a, b in zip(side, other, strict=True):
            assert torch.equal(a.cpu(), b) if isinstance(b, torch.Tensor) else a == b


@pytest.mark.parametrize("backend", ROADS)
def test_a_cuda_graph_follows_the_layout(backend: str | None) -> None:
    """Nothing waits for the device, forward and backward, and what is replayed reads the layout that then stands."""
    setting, _ = on_the_gpu("a layout a head × 64 × 64", backend, torch.bfloat16)
    problem = torch.randn(3, 2, 4, setting.queries, 64, device="cuda", dtype=torch.bfloat16)
    layout = torch.rand(1, 4, 10, 10, device="cuda") < 0.5

    def results() -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in problem)  # made on the stream that captures
        out = attend_blocks(q, k, v, layout, block=64, backend=backend)
        return out.detach(), *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    replayed, replay = captured(results)
    layout.copy_(torch.rand(layout.shape, device="cuda") < 0.5)
    replay()
    for found, right in zip(replayed, results(), strict=True):
        assert torch.equal(found, right)


@pytest.mark.parametrize("backend", ROADS)
def test_a_hundred_runs_give_the_same_bits(backend: str | None) -> None:
    setting, shown = on_the_gpu("a layout a head × 64 × 64", backend, torch.bfloat16)
    q, k, v = torch.randn(3, 2, 4, 600, 64, device="cuda", dtype=torch.bfloat16).requires_grad_().unbind()

    def results() -> tuple[torch.Tensor, ...]:
        out = attend_blocks(q, k, v, shown.layout(setting), block=64, backend=backend)
        return out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    first = results()
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(first, results(), strict=True))
