"""What stands around the kernels over chosen latents: in the interpreter what PyTorch and Python's sets make."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import interpreted_in_halves
from tests.kernels.latent_in_interpreter import CHECKS

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    found, complaints = interpreted_in_halves("latent_in_interpreter")
    assert "Warning" not in complaints, complaints
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_do_what_pytorch_does(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]
