"""The Triton backend: right for every regular pattern, and clear about what it does not run."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from gossamer.kernels import Problem
from gossamer.kernels.triton import TRITON
from gossamer.patterns import Causal, Dilated, Pattern, RandomBlocks, Window
from gossamer.plan import plan
from tests.kernels.interpreter import asked, interpreted_in_halves
from tests.kernels.triton_in_interpreter import CASES, SLOW


@pytest.fixture(scope="module")
def failures(request: pytest.FixtureRequest) -> dict[str, str]:
    if find_spec("triton") is None:
        pytest.skip("needs Triton")
    found, complaints = interpreted_in_halves("triton_in_interpreter", asked(request, test_the_kernels_are_right))
    assert "Warning" not in complaints, complaints
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_the_kernels_are_right(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]


WINDOW = Causal() & Window(512)


def problem(pattern: Pattern = WINDOW, device: str = "cuda", **changed: object) -> Problem:
    settings = {
        "plan": plan(pattern, 4096, 4096, 8), "device": torch.device(device), "dtype": torch.bfloat16, "batch": 2,
        "key_heads": 2, "width": 64, "value_width": 64, "softcap": 0.0, "dropout": 0.0, "has_sinks": False,
    }  # fmt: skip
    return Problem(**(settings | changed))


def test_what_it_does_not_run_it_says() -> None:
    assert TRITON.refuses(problem(dtype=torch.float64)) == (
        "inputs are torch.float64; it computes float32, bfloat16 and float16"
    )
    single, half = torch.float32, torch.bfloat16
    for width, dtype, most in ((264, single, 256), (520, half, 512)):
        reason = f"heads are 64 and {width} wide; it computes {most} at most in {dtype}"
        assert TRITON.refuses(problem(value_width=width, dtype=dtype)) == reason


def test_terms_that_are_no_run_of_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.kernels.triton.backend.without_gpu", lambda device: None)
    assert TRITON.refuses(problem()) is TRITON.refuses(problem(width=512, value_width=512)) is None
    assert TRITON.refuses(problem(RandomBlocks(64, 1, 0))) is None
    assert "heads 0-7 have a term that is no run of keys (Columns:" in TRITON.refuses(problem(~Dilated(8, step=3)))


def test_without_a_gpu_it_says_so() -> None:
    said = "tensors are on cpu; it needs a CUDA or ROCm GPU (or Triton's interpreter)"
    assert TRITON.refuses(problem(device="cpu")) == said


def test_without_triton_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.kernels.triton.backend.find_spec", lambda name: None)
    assert TRITON.refuses(problem()) == "it needs Triton; pip install triton"
