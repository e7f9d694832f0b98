"""What the backward over chosen blocks subtracts from its scores, for each query, as rows of a matrix product."""

import triton
import triton.language as tl

from ..block_choices.places import queries_here
from ..rows import delta_at, load_tile, load_vector

ABSENT = tl.constexpr(2.0**100)
"""Stands for the log-sum-exp of a query that sees nothing: its probabilities become 0, and nothing becomes NaN."""


@triton.jit
def prepare_auxiliary(
    out, grad_out, lse, grad_lse, aux, queries, heads, scale, ROWS: tl.constexpr, VALUE_WIDTH: tl.constexpr
):  # fmt: skip
    """Rows of 16: three parts of the log-sum-exp over the scale, and three of what `prepare` calls `deltas`."""
    number, batch, head, query, exists = queries_here(heads, queries, ROWS)
    grad_tile = load_tile(grad_out, batch, head, query, exists, VALUE_WIDTH)
    delta = delta_at(grad_tile, out, grad_lse, batch, head, query, exists, VALUE_WIDTH)
    peak = load_vector(lse, batch, head, query, exists)
    absent = peak == float("-inf")
    peak, delta = tl.where(absent, ABSENT, peak / scale)[:, None], tl.where(absent, 0.0, delta)[:, None]
    column = tl.arange(0, 16)[None, :]
    given = tl.where(column < 3, peak, delta)
    high = given.to(tl.bfloat16)
    rest = given - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    which = column % 3
    value = tl.where(which == 0, high, tl.where(which == 1, middle, low))
    cells = aux + (number.to(tl.int64) * queries + query)[:, None] * 16 + column
    tl.store(cells, tl.where(column < 6, value, 0.0), mask=exists[:, None])
