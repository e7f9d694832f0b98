"""The portable backend beyond its results: any tile size, cost that follows the plan, and no n×n anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer.kernels import Saved, Softmax
from gossamer.kernels.head_runs import head_runs
from gossamer.kernels.tiled import TILED, backend
from gossamer.kernels.tiled.walk import TileSize
from gossamer.patterns import (
    Blocks,
    Causal,
    Dilated,
    Documents,
    Pattern,
    PerHead,
    RandomBlocks,
    Strided,
    Window,
    presets,
)
from gossamer.plan import plan
from tests.checks import Setting, check_cost, check_dropout, check_equals_oracle, draw
from tests.patterns_list import HEADS, PATTERNS


@pytest.fixture(params=[(1, 1), (7, 5), (16, 32), (64, 768), (1024, 2048)], ids=str)
def tile_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    rows, keys = request.param
    monkeypatch.setattr(backend, "_tile_size", lambda q: TileSize(rows, keys, q.device, q.dtype))
    yield request.param


@pytest.mark.parametrize("name", PATTERNS)
def test_tiles_of_any_size_give_the_same(name: str, tile_size: tuple[int, int]) -> None:
    length = 40 if tile_size == (1, 1) else 136
    setting = Setting(heads=HEADS[name], key_heads=1, queries=length, keys=length - 3, width=4, sinks=True)
    check_equals_oracle(draw(PATTERNS[name], setting))
    check_dropout(draw(PATTERNS[name], setting), 0.4, seed=9)


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_lanes_of_any_number_give_the_same(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CPU_LANES", lanes)
    for name in ("local and global", "uneven heads", "bigbird"):
        setting = Setting(heads=HEADS[name], batch=3, width=4, sinks=True)
        check_equals_oracle(draw(PATTERNS[name], setting))
        check_dropout(draw(PATTERNS[name], setting), 0.4, seed=9)


COSTS: list[tuple[Pattern, float]] = [
    (Causal(), 1.1),
    (Causal() & Window(256), 1.4),
    (Causal() & Dilated(128, step=4), 1.7),
    (Causal() & Strided(16), 1.2),
    (presets.streaming(256), 1.4),
    (presets.longformer(256, (0, 1000, 3000)), 1.4),
    (Causal() & (Window(256) | Strided(32)), 1.4),
    (RandomBlocks(64, 3, 0), 1.01),
    (Blocks(64, ["10" * 32, "01" * 32] * 32), 1.01),
    (Causal() & Documents([512] * 8), 1.2),
    (presets.local_global(2, 1, window=256, every=10), 1.4),
]


@pytest.mark.parametrize(("pattern", "most"), COSTS, ids=[str(pattern)[:60] for pattern, _ in COSTS])
def test_the_work_is_that_of_the_visible_pairs(pattern: Pattern, most: float) -> None:
    """Operations really done, the masked part of tiles included: never those of dense attention in disguise."""
    check_cost(pattern, 4096, most)


class LargestTensor(TorchDispatchMode):
    """Watches every operation and keeps the most elements that one tensor had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize(("pattern", "_"), COSTS, ids=[str(pattern)[:60] for pattern, _ in COSTS])
def test_no_tensor_grows_with_the_square_of_the_length(pattern: Pattern, _: float) -> None:
    """Four times the length, at most four times the largest tensor (and a few tiles, which do not grow)."""
    largest = []
    for length in (2048, 8192):
        heads = pattern.head_cuts[-1] if pattern.head_cuts else 1
        problem = draw(pattern, Setting(heads=heads, queries=length, width=8, dtype=torch.float32))
        made, softmax = plan(pattern, length, length, heads), Softmax(scale=1.0, dropout=0.1, seed=torch.tensor([1]))
        with LargestTensor() as watched:
            out, lse = TILED.forward(problem.q, problem.k, problem.v, None, made, softmax)
            saved = Saved(problem.q, problem.k, problem.v, out, lse, None)
            TILED.backward(saved, problem.grad_out, problem.grad_lse, made, softmax)
        largest.append(watched.elements)
    assert largest[1] <= 4 * largest[0]
    assert largest[1] <= max(3 * 8192 * 8, 3 * 2**14 * 64), f"{largest[1]:,} elements at 8,192 tokens"


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_head_runs_meet_every_head_once_and_its_own_key_head(groups: int) -> None:
    pattern = PerHead([(Causal(), 1), (Window(2), 4), (Causal() & Window(3), 7)])
    made, repeats = plan(pattern, 4, 4, 12), 12 // groups
    met = []
    for run in head_runs(made, repeats):
        heads = list(range(run.queries.start, run.queries.stop))
        met += heads
        keys = list(range(run.keys.start, run.keys.stop))
        assert [keys[i // run.repeats] for i in range(len(heads))] == [head // repeats for head in heads]
        assert all(run.group.first <= head < run.group.last for head in heads)
    assert met == list(range(12))
