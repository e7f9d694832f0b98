"""The roads of hashed attention: the Triton kernels are right, and each road says what it does not run."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.kernels.hashed_in_interpreter import CHECKS
from tests.kernels.interpreter import interpreted_in_halves


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    if find_spec("triton") is None:
        pytest.skip("needs Triton")
    found, complaints = interpreted_in_halves("hashed_in_interpreter")
    assert "Warning" not in complaints, complaints
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_are_right(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]
