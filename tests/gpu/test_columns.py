"""Gathered keys and the gradients that go back to them, on the GPU: the very numbers that PyTorch makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.columns_in_interpreter import CASES, Case, check_added, check_gathered, check_written

pytestmark = pytest.mark.gpu

ROUNDED = {name: replace(case, integers=False) for name, case in CASES.items()}
LARGE = Case(keys=16384, step=10, parts=4, dtype=torch.bfloat16, heads_inside=True)


@pytest.mark.parametrize("case", [*ROUNDED.values(), LARGE], ids=[*ROUNDED, "large"])
def test_the_kernels_do_what_pytorch_does(case: Case) -> None:
    for check in (check_written, check_added) if case.step is None else (check_gathered, check_written, check_added):
        check(case, "cuda")
