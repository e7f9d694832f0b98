"""The Triton kernels for blocks are right, for blocks of a plan and for layouts of run time."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.kernels.blocks_in_interpreter import CASES, SLOW
from tests.kernels.interpreter import asked, interpreted_in_halves


@pytest.fixture(scope="module")
def failures(request: pytest.FixtureRequest) -> dict[str, str]:
    if find_spec("triton") is None:
        pytest.skip("needs Triton")
    found, complaints = interpreted_in_halves("blocks_in_interpreter", asked(request, test_the_kernels_are_right))
    assert "Warning" not in complaints, complaints
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_the_kernels_are_right(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]
