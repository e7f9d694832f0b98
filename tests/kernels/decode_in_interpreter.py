"""Runs the decoding kernels on the CPU, in Triton's interpreter, and prints their errors as JSON.

A program of its own, because Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.kernels import Softmax
from gossamer.patterns import Causal, Pattern, PerHead, Sinks, Strided, Tokens, Window
from gossamer.plan import Blocks, plan
from gossamer.reference import reference
from tests.checks import Problem, Setting, draw
from tests.kernels.interpreter import repair_interpreter
from tests.patterns_list import HEADS, PATTERNS

KEYS = 136


@dataclass(frozen=True)
class Case:
    """A pattern, the sizes, and where each sequence ends; None where all end with the cache."""

    pattern: Pattern
    setting: Setting
    lengths: tuple[int, ...] | None = None


def _cases() -> dict[str, Case]:
    cases, usual = {}, Setting(keys=KEYS, queries=1, key_heads=1, batch=2, dtype=torch.float32)
    for name, pattern in PATTERNS.items():
        terms = [term for group in plan(pattern, KEYS, KEYS, HEADS[name]).groups for term in group.terms]
        if not any(isinstance(term, Blocks) for term in terms):
            setting = replace(usual, heads=HEADS[name])
            cases[f"{name}, one query"] = Case(pattern, setting, (KEYS, 77))
            cases[f"{name}, three queries"] = Case(pattern, replace(setting, queries=3, sinks=True), (0, 100))
    pattern = Causal() & (Window(40) | Strided(5) | Tokens([1, 33, 34, 71]))
    grouped = replace(usual, heads=8, key_heads=2)
    return cases | {
        "all keys": Case(pattern, grouped),
        "sixteen queries": Case(pattern, replace(grouped, queries=16), (KEYS, 9)),
        "float16": Case(pattern, replace(grouped, dtype=torch.float16, queries=2), (KEYS, 50)),
        "odd widths": Case(pattern, replace(grouped, width=24, value_width=72, softcap=2.0, sinks=True), (100, 1)),
        "wide": Case(pattern, replace(grouped, width=256, value_width=8), (KEYS, 30)),
        "many heads of a key head": Case(pattern, replace(usual, heads=70), (KEYS, 90)),
        "a key head of two groups": Case(
            PerHead([(Causal() & Window(30), 3), (Causal() & (Strided(4) | Sinks(2)), 5)]),
            replace(usual, heads=8, queries=2),
            (KEYS, 60),
        ),
    }


CASES = _cases()


def bound(case: Case) -> float:
    """The largest error that the interpreter may make."""
    return 2e-3 if case.setting.dtype == torch.float16 else 3e-6


def error(case: Case, layout: str = "contiguous") -> float:
    """The largest error of out and log-sum-exp against the definition in float64."""
    from gossamer.kernels.triton.decode import decode

    problem, lengths = draw(case.pattern, case.setting), case.lengths
    k, v = problem.k, problem.v
    if layout == "transposed":
        k, v = (x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1) for x in (k, v))
    for number, length in enumerate(lengths or ()):
        for x in (k, v):
            x[number, :, length:] = torch.nan
    made = plan(case.pattern, problem.q.shape[2], k.shape[2], problem.q.shape[1])
    scale = problem.q.shape[3] ** -0.5
    softmax = Softmax(
        scale, case.setting.softcap or 0.0, lengths=None if lengths is None else torch.tensor(lengths, device=k.device)
    )
    found = decode(problem.q, k, v, problem.sinks, made, softmax)
    errors = [0.0]
    for number in range(case.setting.batch):
        right = _alone(problem, number, k.shape[2] if lengths is None else lengths[number])
        for a, b in zip((x[number] for x in found), right, strict=True):
            assert torch.equal(a.isfinite(), b.isfinite()), "infinite where it should not be, or finite"
            errors.append(
                (a.double() - b)[b.isfinite()].abs().sum().item() and (a - b)[b.isfinite()].abs().max().item()
            )
    return max(errors)


def _alone(problem: Problem, number: int, length: int) -> tuple[Tensor, Tensor]:
    """What the sequence gives by definition."""
    q, k, v = (x[number, None].double() for x in (problem.q, problem.k, problem.v))
    hidden, sinks = max(q.shape[2] - length, 0), problem.sinks
    lse = q.new_full(q.shape[1:3], -torch.inf)
    if sinks is not None:
        lse.copy_(sinks[:, None])
    out = q.new_zeros(*lse.shape, v.shape[3])
    if length:
        seen = q[:, :, hidden:], k[:, :, :length], v[:, :, :length]
        made = reference(*seen, problem.pattern, sinks=sinks, softcap=problem.softcap)
        out[:, hidden:], lse[:, hidden:] = (x[0] for x in made)
    return out, lse


if __name__ == "__main__":
    torch.set_num_threads(1)
    repair_interpreter()
    errors = {name: error(case) for name, case in CASES.items()}
    errors["transposed"] = error(CASES["all keys"], "transposed")
    print(json.dumps(errors))
