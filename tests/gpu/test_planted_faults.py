"""Each fault, planted in a kernel for the GPU, is found there by the check that passes where nothing is planted."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gossamer.kernels.devices import capability
from tests.gpu.planted import FAULTS, NOTHING

pytestmark = pytest.mark.gpu

TIMEOUT = 300
"""Seconds after which a kernel waits for what never comes."""


def said_with(name: str) -> subprocess.CompletedProcess[str]:
    """What the checks say with the fault."""
    if capability(torch.device("cuda")) != (9, 0):
        pytest.skip("the faults are planted in kernels for compute capability 9.0")
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu.planted", name], capture_output=True, text=True, timeout=TIMEOUT
    )


def test_the_sound_kernels_pass() -> None:
    run = said_with(NOTHING)
    assert run.returncode == 0 and not run.stdout.strip(), run.stdout + run.stderr


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_found(name: str) -> None:
    run = said_with(name)
    assert run.stdout.startswith(f"{FAULTS[name].check}: "), run.stdout + run.stderr
