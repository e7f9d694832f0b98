"""Runs the checks of the best keys over the Triton kernels, in Triton's interpreter, and prints what fails as JSON.

Float32 and float16 only: the interpreter multiplies bfloat16 tiles as if they were integers. Eight bits are multiplied
in float16 there, as on GPUs without instructions for them.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gossamer.kernels.triton.quantizing import quantize
from gossamer.kernels.triton.top_keys_select import IN_REGISTERS, RowSelection, select_top
from gossamer.selectors.quantized import LARGEST, LEAST, quantized
from tests.kernels.interpreter import tell
from tests.top_keys_checks import CASES, KINDS, Case, check_definition, check_normal, check_selection, scores_of

SHORT = RowSelection(sample=32, room=32, tile=64)
"""Reads short rows as long ones are read."""
ROOMY = replace(SHORT, room=2 * IN_REGISTERS.value, tile=1024)

BY_TRITON = partial(check_definition, backend="triton")
SMALL = {name: replace(case, queries=min(case.queries, 12), batch=1) for name, case in CASES.items()}


def score_of(key: int) -> float:
    """The score whose key this is, given as a signed number."""
    key &= 0xFFFFFFFF
    if key <= 0x007FFFFF:
        return -math.inf
    return struct.unpack("f", struct.pack("I", key ^ (0x80000000 if key >= 0x80000000 else 0xFFFFFFFF)))[0]


def check_ways() -> None:
    """Rows whose bound is good, equals what is last chosen, lets too few through, or too many: all come about."""
    count, keys, ways = 8, 600, set()
    for kind in ("normal", "all equal", "nothing", "close"):
        scores, visible = scores_of(kind, 4, keys), torch.full((4,), keys, dtype=torch.int32)
        found = SHORT.narrowed(scores, visible, count)
        room = found.held.shape[1]
        for row, bound, held in zip(scores, found.bounds.tolist(), found.not_below.tolist(), strict=True):
            bound_is_last = held >= count > (row > score_of(bound)).sum()
            good = "put aside" if held <= room else "ties" if bound_is_last else "too many"
            ways.add("too few" if held < count else good)
        check_selection(SHORT.select, kind, keys=keys, count=count)
    assert ways == {"too few", "put aside", "ties", "too many"}, ways


def check_torn_rows() -> None:
    """Rows that do not start where vectors do, or end in the middle of one where the memory ends too."""
    for keys, stride in ((97, 97), (97, 100), (100, 100), (98, 128)):
        memory = torch.full((4 * stride,), torch.nan)
        scores = memory[: 3 * stride + keys].as_strided((4, keys), (stride, 1))
        scores.copy_(scores_of("many ties", 4, keys))
        select = partial(_select_these, scores)
        check_selection(select, "many ties", rows=4, keys=keys)


def check_quantizing(precision: str) -> None:
    """Rows of several programs, of vectors that lie apart and need no rounding: the interpreter has its own."""
    x = torch.randint(-15, 16, (2, 150, 3, 40)).float()
    x[..., 7], x[0, 0, 0] = LARGEST, 0.0
    x = x.mul_(2.0 ** (torch.arange(150) % 9)[:, None, None]).transpose(1, 2)
    found = quantize(x, LEAST, LARGEST, power_of_two="ue8m0" in precision)
    for here, there in zip(found, quantized(x, precision), strict=True):
        assert torch.equal(here.float(), there.float())


def _select_these(scores: Tensor, _: Tensor, visible: Tensor, count: int) -> Tensor:
    return SHORT.select(scores, visible, count)


CHECKS = {
    **{f"{kind} scores": partial(check_selection, select_top, kind) for kind in KINDS},
    **{f"{kind} scores, a long row": partial(check_selection, SHORT.select, kind, keys=330, count=8) for kind in KINDS},
    "more chosen than there are": partial(check_selection, select_top, "many ties", keys=30, count=60),
    "every way through a long row": check_ways,
    **{f"{kind} scores, room for more than a program holds": partial(check_selection, ROOMY.select, kind, rows=4,
       keys=17_000, count=40) for kind in ("normal", "many ties")},
    "torn rows": check_torn_rows,
    "quantizing": partial(check_quantizing, "fp8"),
    "quantizing by powers of two": partial(check_quantizing, "fp8 ue8m0"),
    **{name: partial(BY_TRITON, case) for name, case in SMALL.items()},
    "float16": partial(BY_TRITON, SMALL["visible"], torch.float16),
    "several tiles of queries and spans of keys": partial(BY_TRITON, Case(queries=33, keys=90, heads=8)),
    "float32, 256 wide": partial(BY_TRITON, replace(SMALL["square"], width=200)),
    "eight bits": partial(check_normal, Case(20, 90, 4, 128), torch.float32, backend="triton", precision="fp8"),
    "eight bits, powers of two": partial(
        check_normal, Case(20, 90, 4, 64), torch.float16, backend="triton", precision="fp8 ue8m0"
    ),
}  # fmt: skip


if __name__ == "__main__":
    tell(CHECKS)
