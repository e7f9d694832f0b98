"""The checks look at kernels too: each fault, planted in a kernel's source, makes the check of the sound one fail.

Here they run in Triton's interpreter. What it cannot run is planted on a GPU (tests/gpu).
"""

from __future__ import annotations

import pytest

from tests.gpu.planted import FAULTS as ON_A_GPU
from tests.kernels.interpreter import interpreted_in_halves
from tests.kernels.planted_in_interpreter import CHECKS, FAULTS
from tests.planting import Fault

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    found, _ = interpreted_in_halves("planted_in_interpreter")
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_sound_kernels_pass(name: str, failures: dict[str, str]) -> None:
    assert not failures[f"sound: {name}"], failures[f"sound: {name}"]


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_found(name: str, failures: dict[str, str]) -> None:
    assert failures[f"faulty: {name}"]


@pytest.mark.parametrize("name", ON_A_GPU)
def test_a_fault_for_the_gpu_has_its_place(name: str) -> None:
    fault = ON_A_GPU[name]
    assert fault.faulty in fault.source


@pytest.mark.parametrize("text", ["no such text", "tl."])
def test_a_fault_without_one_place_is_refused(text: str) -> None:
    with pytest.raises(LookupError, match="times; write the fault for what it has now"):
        assert Fault("triton.tiles", text, "", "support").source
