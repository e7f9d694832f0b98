"""Decoding on a GPU: right in every dtype, the same bits each time, and right again from a CUDA graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gossamer.kernels import Softmax
from gossamer.patterns import Causal, Strided, Window
from gossamer.plan import plan
from tests.checks import Setting, draw
from tests.kernels.decode_in_interpreter import CASES, Case, error

pytestmark = pytest.mark.gpu

ERRORS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
PATTERN = Causal() & (Window(512) | Strided(100))
LARGE = Setting(heads=32, key_heads=8, queries=1, keys=9000, width=128, batch=4, dtype=torch.bfloat16, device="cuda")


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_decoding_is_right(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    assert error(replace(case, setting=replace(case.setting, device="cuda", dtype=dtype))) < ERRORS[dtype]


@pytest.mark.parametrize("queries", [1, 4, 16])
def test_long_caches(queries: int) -> None:
    case = Case(PATTERN, replace(LARGE, queries=queries), (9000, 8191, 3000, 5))
    assert error(case) < ERRORS[torch.bfloat16]


def test_a_graph_follows_lengths_and_contents() -> None:
    from gossamer.kernels.triton.decode import decode

    problem, lengths = draw(PATTERN, LARGE), torch.tensor([9000, 100, 5, 1], dtype=torch.int32, device="cuda")
    made, softmax = plan(PATTERN, 1, LARGE.keys, LARGE.heads), Softmax(LARGE.width**-0.5, lengths=lengths)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return decode(problem.q, problem.k, problem.v, None, made, softmax)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for seed, now in enumerate(([1, 2, 3, 4], [9000, 8999, 8000, 513], [700, 5000, 600, 6000])):
        lengths.copy_(torch.tensor(now))
        other = draw(PATTERN, replace(LARGE, seed=seed + 1))
        for name in ("q", "k", "v"):
            getattr(problem, name).copy_(getattr(other, name))
        graph.replay()
        for found, right in zip(captured, run(), strict=True):
            assert torch.equal(found, right)


def test_a_hundred_repeats_are_the_same_bits() -> None:
    from gossamer.kernels.triton.decode import decode

    problem, made = draw(PATTERN, LARGE), plan(PATTERN, 1, LARGE.keys, LARGE.heads)
    first, *others = (decode(problem.q, problem.k, problem.v, None, made, Softmax(0.1)) for _ in range(100))
    for other in others:
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])
