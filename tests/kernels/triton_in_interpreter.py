"""Runs the checks over the Triton kernels on the CPU, in Triton's interpreter, and prints what fails as JSON.

A program of its own, because Triton decides when it is imported whether it compiles or interprets. Float32 and
float16 only: the interpreter multiplies bfloat16 tiles as if they were integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.kernels import Saved, Softmax, choose
from gossamer.kernels.live_spans import live
from gossamer.kernels.spans import spans, without_span
from gossamer.kernels.tiled import TILED
from gossamer.kernels.triton import TRITON
from gossamer.ops.choice import problem_of
from gossamer.patterns import Causal, Dilated, Pattern, Sinks, Strided, Tokens, Window
from gossamer.plan import plan
from tests.checks import Setting, check_empty_rows, check_error, check_support, check_views, draw, ours, run
from tests.kernels import run_tables_in_torch
from tests.kernels.interpreter import tell
from tests.patterns_list import HEADS, LENGTH, PATTERNS

USUAL = Setting(queries=LENGTH, dtype=torch.float32, key_heads=1)
JOINT = Causal() & (Window(20) | Strided(16))


def check_pattern(pattern: Pattern, setting: Setting) -> None:
    """The backend is the one that is chosen, and its error is that of plain attention."""
    problem = draw(pattern, setting)
    asked = problem_of(problem.q, problem.k, problem.v, problem.sinks, pattern.spec, Softmax(1.0))
    assert choose(asked).backend is TRITON
    check_error(problem)


def check_runs(setting: Setting, start: Tensor, stop: Tensor) -> None:
    """The same of runs that come with the tensors."""
    check_error(replace(draw(Causal(), replace(setting, backend="triton")), runs=(start, stop)))


def check_nan_outside(pattern: Pattern, setting: Setting) -> None:
    """What lies outside a sequence changes nothing, be it NaN: of a pattern whose keys stand in their order."""
    problem = draw(pattern, replace(setting, backend="triton"))
    position, (first, last) = torch.arange(setting.queries), problem.within.T[..., None]
    outside = ((position < first) | (position >= last))[:, None, :, None]
    spoilt = {name: x.masked_fill(outside, torch.nan) for name, x in problem.inputs.items() if name != "sinks"}
    found, right = run(ours, replace(problem, **spoilt)), run(ours, problem)
    for name, x in right.items():
        assert torch.equal(found[name], x), f"{name} differs"


def check_tables(queries: int, keys: int, step: int) -> None:
    """Where runs begin and end between the ends of sequences, and which queries see each key."""
    pattern = Dilated(5, step) if step > 1 else Window(7) | Sinks(3)
    made = plan(pattern, queries, keys, 1)
    within = torch.tensor([[0, keys], [3, keys - 5], [keys // 2, keys], [9, 9], [-4, 2 * keys], [8, 2]]).int()
    for span in spans(made.groups[0], made, torch.device("cpu")):
        confined, right = live(span, Softmax(1.0, within=within)), run_tables_in_torch.Sequences(span, within)
        for found, mask in ((confined, right.seen), (Turned(*confined.seen_by), right.seen.mT)):
            assert (found.start <= found.stop).all() and (found.start >= 0).all()
            for end in (found.start, found.stop):
                assert (end.diff() >= 0).all(), "an end falls"
            place = torch.arange(mask.shape[2])
            shown = (place >= found.start[..., None]) & (place < found.stop[..., None])
            assert torch.equal(shown, mask)


class Turned(NamedTuple):
    """Keys in the place of queries."""

    start: Tensor
    stop: Tensor


def check_dropout_as_tiled(pattern: Pattern, setting: Setting) -> None:
    """It drops the very pairs that the tiled backend drops, forward and backward."""
    problem = draw(pattern, setting)
    made = plan(pattern, problem.q.shape[2], problem.k.shape[2], problem.q.shape[1])
    softmax = Softmax(0.25, dropout=0.3, seed=torch.tensor([2**61 + 5]), within=problem.within)
    found, right = [], []
    for results, backend in ((found, TRITON), (right, TILED)):
        out, lse = backend.forward(problem.q, problem.k, problem.v, None, made, softmax)
        saved = Saved(problem.q, problem.k, problem.v, out, lse, None)
        results += out, lse, *backend.backward(saved, problem.grad_out, problem.grad_lse, made, softmax)[:3]
    for x, y in zip(found, right, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


WITHIN = ((0, 77), (59, LENGTH), (64, 65), (40, 40))
BETWEEN = replace(USUAL, batch=len(WITHIN), within=WITHIN)


def _live() -> dict[str, Callable[[], None]]:
    """Calls whose runs the device alone knows."""
    cases: dict[str, Callable[[], None]] = {}
    for name in ("causal", "longformer", "packed dilated", "local and global", "a gap"):
        heads = HEADS[name]
        cases[f"{name} within ends"] = partial(check_pattern, PATTERNS[name], replace(BETWEEN, heads=heads, sinks=True))
    for name in ("longformer", "packed dilated"):
        few = replace(USUAL, queries=50, keys=50, key_heads=None, width=32, heads=HEADS[name], within=((9, 40),))
        cases[f"support of {name} within ends"] = partial(check_support, PATTERNS[name], few)
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 120, (3, LENGTH), generator=generator).sort(-1)[0].int()
    stop = torch.maximum(start, torch.randint(0, LENGTH + 1, (3, LENGTH), generator=generator).sort(-1)[0].int())
    return cases | {
        "more keys than queries within ends": partial(check_pattern, JOINT, replace(BETWEEN, queries=40, keys=LENGTH)),
        "more queries than keys within ends": partial(check_pattern, JOINT, replace(BETWEEN, queries=160, keys=LENGTH)),
        "outside is NaN": partial(check_nan_outside, PATTERNS["longformer"], replace(BETWEEN, sinks=True)),
        "outside of a window is NaN": partial(check_nan_outside, JOINT, replace(BETWEEN, softcap=2.0)),
        "dropout within ends": partial(check_dropout_as_tiled, PATTERNS["longformer"], BETWEEN),
        "runs": partial(check_runs, replace(USUAL, batch=3), start, stop),
        "runs for all": partial(check_runs, replace(USUAL, batch=3), start[:1], stop[:1]),
        "tables": partial(check_tables, 300, 300, 1),
        "tables of few queries": partial(check_tables, 20, 300, 1),
        "tables of few keys": partial(check_tables, 300, 50, 1),
        "tables of a step": partial(check_tables, 300, 300, 3),
        "tables of a step of few keys": partial(check_tables, 300, 50, 3),
    }


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
        "wider": partial(
            check_pattern, JOINT, replace(USUAL, queries=40, heads=2, width=512, value_width=300, dtype=torch.float16)
        ),
        "few keys of many queries": partial(check_pattern, Tokens([3, 50]), longer),
        "groups share a key head": partial(
            check_pattern, PATTERNS["uneven heads"], replace(USUAL, heads=6, key_heads=2, batch=2)
        ),
        "nothing to see": partial(check_empty_rows, PATTERNS["documents"], USUAL),
        "strides": partial(check_views, JOINT, replace(USUAL, queries=40, batch=2)),
        **_live(),
        "dropout": partial(check_dropout_as_tiled, PATTERNS["longformer"], replace(USUAL, batch=2)),
        "dropout of more queries than keys": partial(check_dropout_as_tiled, JOINT, replace(longer, keys=50)),
    }


CASES = _cases()
SLOW = (
    {"window", "window of one", "dilated", "strided", "tokens", "packed", "packed window", "packed anew", "excerpt"}
    | {"everything", "off the step", "streaming", "sparse transformer", "dilated longformer", "random blocks of nine"}
    | {"few random blocks", "bigbird encoder", "bigbird with extra tokens", "tangled", "a pattern a head"}
    | {"bigbird encoder of few", "both ways", "block window", "global blocks"}
    | {"strides", "support of causal window", "support of rows", "packed dilated within ends"}
) & set(CASES)
"""Cases whose runs and blocks are like those of others here: the kernels see nothing else of a pattern."""


if __name__ == "__main__":
    tell(CASES)
