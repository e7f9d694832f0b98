"""The Triton kernels of an index's lesson: right in the interpreter, within Hopper's limits, and clear in refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gossamer.kernels.triton.warm_up import TRITON_WARM_UP
from gossamer.kernels.warm_up import Lesson
from tests.kernels.interpreter import interpreted_in_halves
from tests.kernels.warm_up_in_interpreter import CHECKS, Case, draw

triton = pytest.importorskip("triton", reason="the kernels need Triton")

from tests.kernels import sm90  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32
SHAPES = {
    "latents": (BF16, 576, 128),
    "bfloat16": (BF16, 64, 64),
    "bfloat16, 256 wide": (BF16, 80, 256),
    "float32": (FP32, 64, 64),
    "float32, 128 wide": (FP32, 128, 128),
}


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    found, complaints = interpreted_in_halves("warm_up_in_interpreter")
    assert "Warning" not in complaints, complaints
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_are_right(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]


@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="Triton interprets in this process and compiles nothing")
@pytest.mark.parametrize(
    "name", [n if n in ("latents", "float32") else pytest.param(n, marks=pytest.mark.slow) for n in SHAPES]
)
def test_the_kernels_fit_hopper(name: str) -> None:
    dtype, width, index_width = SHAPES[name]
    lesson, grad = draw(Case(300, 300, 4, 1, width, 4, index_width, dtype=dtype))
    with sm90.hopper() as kernels:
        TRITON_WARM_UP.backward(lesson, TRITON_WARM_UP.forward(lesson), grad)
    assert {kernel.name for kernel in kernels} == {"_mass", "_scores", "_learn_queries", "_learn_keys"}
    assert [fault for kernel in kernels for fault in kernel.faults] == []


def lesson(**sizes: object) -> Lesson:
    return draw(replace(Case(), **sizes))[0]


def test_triton_says_what_it_does_not_run() -> None:
    assert "it needs a CUDA or ROCm GPU" in (TRITON_WARM_UP.refuses(lesson()) or "")
    assert "queries are torch.float64" in (TRITON_WARM_UP.refuses(lesson(dtype=torch.float64)) or "")
    assert "257 wide; of torch.float16" in (TRITON_WARM_UP.refuses(lesson(index_width=257, dtype=torch.float16)) or "")
    assert "200 wide; of torch.float32 it computes 128" in (TRITON_WARM_UP.refuses(lesson(index_width=200)) or "")
    assert "there are 65 index heads" in (TRITON_WARM_UP.refuses(lesson(index_heads=65)) or "")
