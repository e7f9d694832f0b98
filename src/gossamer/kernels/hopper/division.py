"""Division by a count that many numbers are divided by: as a product, where the GPU would take twenty instructions.

Granlund and Montgomery, "Division by Invariant Integers using Multiplication", 1994.
"""

from __future__ import annotations

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

DIVIDENDS = 31
"""Bits of what may be divided."""


class Divisor(NamedTuple):
    """A count, and two to some power divided by it, rounded up; the power stands above the 32 bits of that."""

    value: gl.tensor
    reciprocal: gl.tensor


def divisor(value: int) -> tuple[int, int]:
    """A positive count as kernels take it who divide by it."""
    power = DIVIDENDS + (value - 1).bit_length()
    return value, power << 32 | -(-(1 << power) // value)


@gluon.jit
def quotient(n, by):
    """n // by.value, for 0 <= n < 2^31."""
    factor = by.reciprocal.to(gl.uint32).to(gl.uint64)
    power = (by.reciprocal >> 32).to(gl.uint64)
    return (n.to(gl.uint32).to(gl.uint64) * factor >> power).to(gl.int32)
