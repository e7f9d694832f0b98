"""Runs the checks over the Triton kernels for blocks in Triton's interpreter, and prints what fails as JSON.

A program of its own, because Triton decides when it is imported whether it compiles or interprets. Float32 and
float16 only: the interpreter multiplies bfloat16 tiles as if they were integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from gossamer.patterns import Blocks, Causal, Pattern, PerHead, RandomBlocks, Strided, Tokens, Window, presets
from tests.checks import Setting, check_empty_rows, check_repeatable, check_support, check_views, draw
from tests.kernels.interpreter import tell
from tests.kernels.triton_in_interpreter import check_dropout_as_tiled, check_pattern
from tests.layouts import CASES as LAYOUTS
from tests.layouts import SUPPORT, check_layout, check_layout_support
from tests.patterns_list import CHECKERED

USUAL = Setting(heads=4, queries=72, dtype=torch.float32, key_heads=2)
DRAWN = PerHead([(RandomBlocks(16, 2, seed), 1) for seed in range(4)])
PARTIAL = PerHead([(RandomBlocks(32, 1, seed) & ~Window(9), 1) for seed in range(4)])
PATTERNS: dict[str, tuple[Pattern, Setting]] = {
    "a layout a head": (DRAWN, replace(USUAL, sinks=True)),
    "partial blocks of a layout a head": (PARTIAL, USUAL),
    "one key head": (DRAWN, replace(USUAL, key_heads=1, sinks=True)),
    "a band beside": (DRAWN | Window(5), replace(USUAL, sinks=True)),
    "a band, columns and rows beside": (DRAWN | Window(5) | Tokens([3, 60]) | Tokens([3, 60]).T, USUAL),
    "columns and rows beside": (DRAWN | Strided(31) | Tokens([3, 60]).T, replace(USUAL, sinks=True)),
    "fewer queries": (PARTIAL | Window(3), replace(USUAL, queries=43, keys=72)),
    "more queries": (PARTIAL | Window(3), replace(USUAL, keys=43)),
    "bigbird of 64": (presets.bigbird(64, random=1), replace(USUAL, queries=200, heads=2, key_heads=1)),
    "blocks of 128": (RandomBlocks(128, 1, 0), replace(USUAL, queries=200, heads=1, key_heads=1)),
    "groups that share a key head": (
        PerHead([(Causal() & Window(9), 1), (Blocks(32, CHECKERED), 1), (Blocks(32, CHECKERED) | Window(5), 2)]),
        replace(USUAL, key_heads=1),
    ),
    "within ends, a band beside": (
        PARTIAL | Window(5),
        replace(USUAL, batch=3, within=((3, 61), (20, 90), (9, 9)), sinks=True),
    ),
    "more queries within ends": (PARTIAL, replace(USUAL, keys=43, batch=2, within=((3, 40), (20, 43)))),
    "fewer queries within ends": (DRAWN, replace(USUAL, queries=43, keys=72, batch=2, within=((3, 40), (35, 72)))),
    "float16": (PARTIAL, replace(USUAL, dtype=torch.float16)),
    "soft cap": (PARTIAL, replace(USUAL, softcap=2.0)),
    "odd widths": (DRAWN, replace(USUAL, width=13, value_width=40)),
}


def _cases() -> dict[str, Callable[[], None]]:
    seen = replace(USUAL, queries=50, width=64, backend="triton")
    on_triton = {name: (replace(setting, backend="triton"), shown) for name, (setting, shown) in LAYOUTS.items()}
    return {
        **{name: partial(check_pattern, *each) for name, each in PATTERNS.items()},
        **{f"layout: {name}": partial(check_layout, *each) for name, each in on_triton.items()},
        **{f"support of layout: {name}": partial(check_layout_support, *on_triton[name]) for name in SUPPORT},
        "support of a layout a head": partial(check_support, DRAWN, seen),
        "support of partial blocks": partial(check_support, PARTIAL, seen),
        "support of blocks beside a band": partial(check_support, DRAWN | Window(5), seen),
        "nothing to see": partial(check_empty_rows, DRAWN, replace(USUAL, queries=40, backend="triton")),
        "strides": partial(check_views, PARTIAL, replace(USUAL, queries=40, backend="triton")),
        "the same bits": lambda: check_repeatable(draw(PARTIAL, replace(USUAL, backend="triton"))),
        "dropout": partial(check_dropout_as_tiled, PARTIAL | Window(5), USUAL),
        "dropout of more queries than keys": partial(check_dropout_as_tiled, PARTIAL, replace(USUAL, keys=50)),
    }


CASES = _cases()
SLOW = {"strides", "support of blocks beside a band", "support of partial blocks", "dropout of more queries than keys"}
"""Cases whose parts others show here, or the other Triton kernels do."""


if __name__ == "__main__":
    tell(CASES)
