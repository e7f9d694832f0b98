"""Runs the checks over the Triton kernels on the CPU, in Triton's interpreter, and prints what fails as JSON.

A program of its own, because Triton decides when it is imported whether it compiles or interprets. Float32 and
float16 only: the interpreter multiplies bfloat16 tiles as if they were integers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from gossamer.kernels import Saved, Softmax, choose
from gossamer.kernels.spans import without_span
from gossamer.kernels.tiled import TILED
from gossamer.kernels.triton import TRITON
from gossamer.ops.choice import problem_of
from gossamer.patterns import Causal, Pattern, Strided, Tokens, Window
from gossamer.plan import plan
from tests.checks import Setting, check_empty_rows, check_error, check_support, check_views, draw
from tests.kernels.interpreter import failure, repair_interpreter
from tests.patterns_list import HEADS, LENGTH, PATTERNS

USUAL = Setting(queries=LENGTH, dtype=torch.float32, key_heads=1)
JOINT = Causal() & (Window(20) | Strided(16))


def check_pattern(pattern: Pattern, setting: Setting) -> None:
    """The backend is the one that is chosen, and its error is that of plain attention."""
    problem = draw(pattern, setting)
    asked = problem_of(problem.q, problem.k, problem.v, problem.sinks, pattern.spec, Softmax(1.0))
    assert choose(asked).backend is TRITON
    check_error(problem)


def check_dropout_as_tiled(pattern: Pattern, setting: Setting) -> None:
    """It drops the very pairs that the tiled backend drops, forward and backward."""
    problem = draw(pattern, setting)
    made = plan(pattern, problem.q.shape[2], problem.k.shape[2], problem.q.shape[1])
    softmax = Softmax(0.25, dropout=0.3, seed=torch.tensor([2**61 + 5]))
    found, right = [], []
    for results, backend in ((found, TRITON), (right, TILED)):
        out, lse = backend.forward(problem.q, problem.k, problem.v, None, made, softmax)
        saved = Saved(problem.q, problem.k, problem.v, out, lse, None)
        results += out, lse, *backend.backward(saved, problem.grad_out, problem.grad_lse, made, softmax)[:3]
    for x, y in zip(found, right, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def _cases() -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {}
    for name, pattern in PATTERNS.items():
        if without_span(plan(pattern, LENGTH, LENGTH, HEADS[name]), blocks=True) is None:
            cases[name] = partial(check_pattern, pattern, replace(USUAL, heads=HEADS[name], sinks=True))
    short = replace(USUAL, queries=50, keys=70, key_heads=None, width=32)
    for name in ("causal window", "sinks", "rows", "packed dilated"):
        cases[f"support of {name}"] = partial(check_support, PATTERNS[name], short)
    longer = replace(USUAL, heads=4, queries=200)
    return cases | {
        "float16": partial(check_pattern, PATTERNS["longformer"], replace(USUAL, dtype=torch.float16)),
        "softcap": partial(check_pattern, JOINT, replace(USUAL, softcap=2.0)),
        "weak softcap": partial(check_pattern, JOINT, replace(USUAL, softcap=1000.0)),
        "odd widths": partial(check_pattern, JOINT, replace(USUAL, width=13, value_width=40)),
        "wide": partial(check_pattern, JOINT, replace(USUAL, queries=40, width=192, value_width=8)),
        "few keys of many queries": partial(check_pattern, Tokens([3, 50]), longer),
        "groups share a key head": partial(
            check_pattern, PATTERNS["uneven heads"], replace(USUAL, heads=6, key_heads=2, batch=2)
        ),
        "nothing to see": partial(check_empty_rows, PATTERNS["documents"], USUAL),
        "strides": partial(check_views, JOINT, replace(USUAL, queries=40, batch=2)),
        "dropout": partial(check_dropout_as_tiled, PATTERNS["longformer"], replace(USUAL, batch=2)),
        "dropout of more queries than keys": partial(check_dropout_as_tiled, JOINT, replace(longer, keys=50)),
    }


CASES = _cases()


if __name__ == "__main__":
    torch.set_num_threads(1)
    repair_interpreter()
    with np.errstate(divide="ignore"):  # log2(0) is the log-sum-exp of a query that sees nothing
        print(json.dumps({name: failure(check) for name, check in CASES.items()}))
