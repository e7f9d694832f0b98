"""`attend_hashed` on the CPU: the definition, its limits, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from tests.hashed_checks import CASES, check_definition, check_repeatable, check_support


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_definition(name: str) -> None:
    check_definition(CASES[name], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["paper", "trax", "padded, trax", "all alone"])
def test_other_dtypes_err_no_more_than_the_definition_in_them(name: str, dtype: torch.dtype) -> None:
    check_definition(CASES[name], dtype)


@pytest.mark.parametrize("name", CASES)
def test_exactly_those_that_meet_are_seen(name: str) -> None:
    check_support(CASES[name])


def test_results_repeat_to_the_bit() -> None:
    check_repeatable(CASES["paper"], torch.float32, "cpu")
