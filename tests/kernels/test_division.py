"""A count and its reciprocal, as kernels get them, divide exactly."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="kernels divide so, and are written for Triton")

from gossamer.kernels.hopper.division import DIVIDENDS, divisor
from gossamer.kernels.hopper.sweep import work_of

LARGEST = 2**DIVIDENDS - 1


def quotient(n: int, value: int) -> int:
    """As `division.quotient` has it."""
    _, reciprocal = divisor(value)
    product = n * (reciprocal & 0xFFFFFFFF)
    assert product < 2**64
    return product >> (reciprocal >> 32)


@pytest.mark.parametrize("value", [*range(1, 300), 2**15 - 1, 2**20 + 1, 2**30 - 1, 2**30, 2**30 + 1, LARGEST])
def test_quotients_are_exact(value: int) -> None:
    assert divisor(value)[0] == value
    most = LARGEST // value
    for times in {*range(min(most, 50) + 1), most // 3, most // 2, most - 1, most}:
        for n in (times * value - 1, times * value, times * value + 1):
            if 0 <= n <= LARGEST:
                assert quotient(n, value) == n // value, (n, value)


def test_a_reciprocal_keeps_its_type() -> None:
    """Triton compiles a kernel anew for a number of 32 bits."""
    assert all(divisor(value)[1] > 2**32 for value in (1, 2, 3, LARGEST))


@pytest.mark.parametrize(
    ("units", "cached", "section"), [(48, 6, 6), (48, 7, 6), (64, 3, 2), (7, 6, 1), (5, 9, 5), (1, 1, 1)]
)
def test_sections_are_of_one_size(units: int, cached: int, section: int) -> None:
    items, blocks, *divisors = work_of(units, 10, cached)
    assert (items, blocks) == (10 * units, 10)
    assert divisors == [*divisor(section), *divisor(10 * section)]
