"""Gathered keys and the gradients that go back to them: in the interpreter the very numbers that PyTorch makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.kernels.columns_in_interpreter import CHECKS

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    command = [sys.executable, "-m", "tests.kernels.columns_in_interpreter"]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_do_what_pytorch_does(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]
