"""The maxima of an online softmax, raised only when they have to be, so that an accumulator is seldom rescaled.

Probabilities are measured by a maximum that scores may pass by `HEADROOM` powers of two: the sums and the accumulator,
in float32, hold that with ease, and the output and the log-sum-exp are the same. FlashAttention-4 does so as well.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

HEADROOM = gl.constexpr(8.0)
"""Powers of two by which a score may pass its row's maximum: probabilities stay within float16."""


def _products(count: int) -> tuple[gl.constexpr, gl.constexpr]:
    """(PTX, constraints): a thread's `count` numbers times their rows' factors, skipped by a warp that has but ones.

    Of a matrix instruction's result, a thread holds numbers of two rows, two of the one and two of the other in turn.
    """
    one, other = f"${2 * count}", f"${2 * count + 2}"
    products = "".join(f"mul.f32 ${i}, ${count + i}, {other if i & 2 else one}; " for i in range(count))
    code = (
        "{ .reg .pred p, q; "
        f"setp.neu.f32 p, {one}, 0f3F800000; setp.neu.f32 q, {other}, 0f3F800000; or.pred p, p, q; "
        f"vote.sync.any.pred p, p, -1; @!p bra ones; {products}ones: }}"
    )
    # Every result takes the place of its number, which is what stays there where all is skipped.
    constraints = ["=f"] * count + [str(i) for i in range(count)] + ["f"] * count
    return gl.constexpr(code), gl.constexpr(",".join(constraints))


NARROW, NARROW_CONSTRAINTS = _products(32)
WIDE, WIDE_CONSTRAINTS = _products(64)


@gluon.jit
def raised(highest, newest):
    """The maxima so far, raised to the greatest of a row's newest scores where that is beyond the headroom."""
    return gl.where(newest > highest + HEADROOM, newest, highest)


@gluon.jit
def rescaled(acc, factor):
    """acc [64, 64 or 128], a matrix instruction's result that nothing is being added to, times its rows' factors."""
    factor = gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, acc.type.layout)), 1)
    acc, factor = gl.broadcast(acc, factor)
    code: gl.constexpr = NARROW if acc.shape[1] == 64 else WIDE
    constraints: gl.constexpr = NARROW_CONSTRAINTS if acc.shape[1] == 64 else WIDE_CONSTRAINTS
    count: gl.constexpr = acc.shape[1] // 2
    # Not pure, though it is: a vote has to stay where all of the warp takes part.
    return gl.inline_asm_elementwise(code, constraints, [acc, factor], dtype=gl.float32, is_pure=False, pack=count)
