"""Plants one fault in the kernels, runs its check on the GPU, and prints what the check says.

A program of its own for each fault: one that breaks the GPU's context breaks nothing else. With `nothing` planted, it
runs every check.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest import mock

import torch

from gossamer.patterns import Causal, GlobalBlocks, Window, presets
from tests.checks import Setting, check_empty_rows, check_error, check_no_leak, check_support, draw
from tests.planting import Fault, planted

SETTING = {"heads": 2, "queries": 328, "width": 64, "device": "cuda", "dtype": torch.bfloat16, "backend": "hopper"}
LOCAL = Causal() & Window(100)
STREAMED, SWEPT = Setting(**SETTING), Setting(**SETTING, key_heads=1)
"""Kernels that stream a band take no shared key heads; those that sweep over it do."""

LONGFORMER = presets.longformer(100, (0, 200, 201))
ENDS = ((0, 328), (50, 300), (100, 180))


FRONT = GlobalBlocks(64, (0,)) | GlobalBlocks(64, (0,)).T


def check_long_rows() -> None:
    """Rows of blocks in parts, at a length at which none is cut else."""
    from gossamer.kernels.hopper import long_rows

    with mock.patch.multiple(long_rows, SHORTEST_LONG_ROW=2, SHORTEST_PART=1):
        check_error(draw(FRONT, replace(STREAMED, batch=3, within=ENDS)))


def check_far_memory() -> None:
    """The portable kernels read and write behind number 2³¹."""
    from tests.gpu.test_kernels import test_strides_of_more_than_two_to_the_31_numbers as check

    check("triton", 2**31 + 512)


CHECKS: dict[str, Callable[[], None]] = {
    "streamed, support": partial(check_support, LOCAL, STREAMED),
    "streamed, error": lambda: check_error(draw(LOCAL, STREAMED)),
    "swept, support": partial(check_support, LOCAL, SWEPT),
    "swept band, support": partial(check_support, Causal() & Window(200), SWEPT),
    "swept, error": lambda: check_error(draw(Causal(), SWEPT)),
    "swept, growing scores": lambda: check_error(draw(Causal(), replace(SWEPT, magnitude=4.0))),
    "swept, no leak": partial(check_no_leak, Causal(), SWEPT, [63, 200]),
    "swept, empty rows": partial(check_empty_rows, ~Causal() & Window(70), SWEPT),
    "swept within ends": lambda: check_error(draw(LOCAL, replace(SWEPT, batch=3, within=ENDS))),
    "long rows within ends": check_long_rows,
    "far memory": check_far_memory,
    "longformer, error": lambda: check_error(draw(LONGFORMER, replace(STREAMED, sinks=True))),
    "longformer, support": partial(check_support, LONGFORMER, STREAMED),
    "longformer in shares": lambda: check_error(draw(LONGFORMER, replace(STREAMED, queries=2200, heads=1))),
}

FAULTS: dict[str, Fault] = {
    "a sweep ends one key late": Fault(
        "hopper.sweep",
        "row + (edges.shift + 1)",
        "row + (edges.shift + 2)",
        "swept, no leak",
    ),
    "a sweep begins one key late": Fault(
        "hopper.sweep",
        "(edges.shift - edges.breadth + 1)",
        "(edges.shift - edges.breadth + 2)",
        "swept, support",
    ),
    "a sweep masks no tile where rows begin": Fault(
        "hopper.sweep",
        "if column < reach.last_begin:",
        "if column < reach.last_begin - 9999:",
        "swept band, support",
    ),
    "a sweep masks no tile where rows end": Fault(
        "hopper.sweep",
        "if column + COLUMNS > reach.first_end:",
        "if column + COLUMNS > reach.first_end + 9999:",
        "swept, support",
    ),
    "a sweep's output is not rescaled for a new maximum": Fault(
        "hopper.sweep_forward",
        "acc = rescaled(acc, factor)",
        "acc = rescaled(acc, 0 * factor + 1)",
        "swept, growing scores",
    ),
    "a warp rescales for one of its two rows alone": Fault(
        "hopper.rescale",
        "or.pred p, p, q; ",
        "",
        "swept, growing scores",
    ),
    "the log-sum-exp of an empty row is finite": Fault(
        "hopper.sweep_forward",
        "gl.log2(sums)",
        "gl.log2(gl.maximum(sums, 1e-30))",
        "swept, empty rows",
    ),
    "a shared key's gradient is its last head's": Fault(
        "hopper.sweep_backward_keys",
        "pass_over(bars, done, done + begin - first, config)",
        "pass_over(bars, done, done + begin - first, config); dk = gl.zeros((TILE, WIDTH), gl.float32, dk_layout)",
        "swept, error",
    ),
    "the auxiliary rows lack the log-sum-exp": Fault(
        "hopper.sweep_backward_queries",
        "(aux, lse / scale, delta,",
        "(aux, 0 * lse, delta,",
        "swept, error",
    ),
    "a streamed band stands one key off": Fault(
        "hopper.ring",
        "in_turn(rows & ~8, turn)",
        "in_turn((rows & ~8) + 1, turn)",
        "streamed, support",
    ),
    "a thread's second row is masked as its first": Fault(
        "hopper.ring",
        "gl.expand_dims(rows & 8, 1)",
        "gl.expand_dims(rows & 0, 1)",
        "streamed, support",
    ),
    "a streamed band's two edges are one": Fault(
        "hopper.ring",
        "cvt.rn.bf16x2.f32 t, $3, $2; not.b32 n, $4; and.b32 $0, t, $4;",
        "cvt.rn.bf16x2.f32 t, $3, $2; not.b32 n, $4; mov.b32 $0, t;",
        "streamed, error",
    ),
    "the ends of the first sequence count for all": Fault(
        "hopper.sweep",
        "edges.begin + (batch * edges.apart + row)",
        "edges.begin + row",
        "swept within ends",
    ),
    "a copy's number says whether its query is in its sequence": Fault(
        "hopper.blocks_forward",
        "if within is not None and not config.copies:",
        "if within is not None:",
        "long rows within ends",
    ),
    "a copy's number says whether its query has a gradient": Fault(
        "hopper.blocks_backward_queries",
        "if within is not None and not config.copies:",
        "if within is not None:",
        "long rows within ends",
    ),
    "every part has all of a long row's list": Fault(
        "hopper.long_rows",
        "host.starts[:, rows] + begin, end - begin",
        "host.starts[:, rows], host.counts[:, rows]",
        "long rows within ends",
    ),
    "other passes see the queries that see every key": Fault(
        "hopper.row_shares",
        'tl.where(tl.load(absent + piece), float("-inf"), values)',
        "tl.where(tl.load(absent + piece), values, values)",
        "longformer, error",
    ),
    "a share ends one key early": Fault(
        "hopper.whole_rows",
        "last = (first + share).clamp(max=self.keys)",
        "last = (first + share - 1).clamp(max=self.keys - 1)",
        "longformer, support",
    ),
    "warpgroups that take turns write to one place": Fault(
        "hopper.sweep",
        "place.row * STEP + consumer * TILE",
        "place.row * STEP + 0 * consumer",
        "longformer in shares",
    ),
    "queries that see every key stand one row on": Fault(
        "hopper.sweep_backward_keys",
        "[place.batch, place.key_head, tile * TILE, 0]",
        "[place.batch, place.key_head, tile * TILE + 1, 0]",
        "longformer, support",
    ),
    "the sinks do not join the shares": Fault(
        "hopper.row_shares",
        "total += tl.exp(sink - highest)",
        "total += 0 * sink",
        "longformer, error",
    ),
    "the first copy of the columns ends one key late": Fault(
        "hopper.doubled",
        "before.stop.cpu() + before.key_count",
        "before.stop.cpu() + before.key_count + 1",
        "longformer, error",
    ),
    "an offset has 32 bits": Fault(
        "rows",
        "(start_of(x, batch, head) + index.to(tl.int64) * x.row) * x.unit",
        "(start_of(x, batch, head).to(tl.int32) + index * x.row) * x.unit",
        "far memory",
    ),
}
NOTHING = "nothing"


def failure(check: str, fault: Fault | None) -> str:
    """What the check says of the kernels with the fault, or nothing where it holds."""
    torch.manual_seed(0)
    with planted(fault):
        try:
            CHECKS[check]()
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "illegal memory access" not in str(error):
                raise
            return f"{check}: {type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    name = sys.argv[1]
    runs = [(check, None) for check in CHECKS] if name == NOTHING else [(FAULTS[name].check, FAULTS[name])]
    print(*filter(None, (failure(*run) for run in runs)), sep="\n", flush=True)
