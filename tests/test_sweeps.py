"""Random problems, a thousand a pattern: the seed is the number, so each failure can be drawn again by itself.

A handful that changes with the day runs by default, all of them with `-m slow`. A failure names its problem:
`check_random_problem("causal window", 17)` runs it alone.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
import torch

from tests.checks import (
    Problem,
    Setting,
    check_dropout,
    check_equals_oracle,
    check_error,
    check_pieces,
    check_support,
    draw,
)
from tests.patterns_list import CAUSAL, HEADS, PATTERNS

PROBLEMS = 1000
A_DAY = 6
TODAY = [int(time.time() // 86400) * A_DAY % PROBLEMS + i for i in range(A_DAY)]

LENGTHS = [0, 1, 2, 3, 17, 33, 63, 64, 65, 97, 113, 127, 128, 129, 150]


def random_setting(name: str, number: int) -> tuple[Setting, random.Random]:
    """Sizes and options of one problem, and the generator for what else is to be decided."""
    rng = random.Random(f"{name} {number}")
    keys = rng.choice(LENGTHS)
    heads = HEADS[name]
    return Setting(
        heads=heads,
        key_heads=rng.choice([groups for groups in range(1, heads + 1) if heads % groups == 0]),
        queries=keys if rng.random() < 0.6 else rng.choice(LENGTHS),
        keys=keys,
        width=rng.choice([1, 2, 4, 8, 16]),
        value_width=rng.choice([None, None, 1, 5]),
        batch=rng.choice([1, 1, 2]),
        magnitude=rng.choice([1.0, 1.0, 3.0]),
        scale=rng.choice([None, None, 0.3, -0.5]),
        softcap=rng.choice([None, None, 0.5, 4.0]),
        sinks=rng.random() < 0.3,
        seed=number,
    ), rng


def random_view(problem: Problem, rng: random.Random) -> Problem:
    """The same numbers in memory of another order."""
    changed = {}
    for name in ("q", "k", "v", "grad_out"):
        x = getattr(problem, name)
        order = rng.sample(range(4), 4)
        back = [order.index(axis) for axis in range(4)]
        changed[name] = x.permute(order).contiguous().permute(back)
    return replace(problem, **changed)


def half_precision(setting: Setting, rng: random.Random) -> Setting:
    """Enough rows of moderate scores for an error to compare: of one sharp row plain attention is right by luck."""
    dtype, length = rng.choice([torch.bfloat16, torch.float16]), max(setting.keys, 33)
    return replace(setting, dtype=dtype, batch=3, queries=length, keys=length, magnitude=1.0, scale=None, softcap=None)


def check_random_problem(name: str, number: int) -> None:
    """Random problem `number` of a pattern: one of the ways to be right, at random sizes and options."""
    setting, rng = random_setting(name, number)
    pattern = PATTERNS[name]
    kind = rng.choice(["oracle", "oracle", "half", "support", "dropout", "pieces" if name in CAUSAL else "oracle"])
    if kind == "oracle":
        check_equals_oracle(random_view(draw(pattern, setting), rng))
    elif kind == "half":
        check_error(random_view(draw(pattern, half_precision(setting, rng)), rng))
    elif kind == "support":
        check_support(pattern, replace(setting, dtype=torch.float32, width=32))
    elif kind == "dropout":
        check_dropout(random_view(draw(pattern, setting), rng), rng.choice([0.01, 0.2, 0.7]), rng.getrandbits(62))
    else:
        length = setting.keys
        cuts = sorted(rng.randint(0, length) for _ in range(3))
        pieces = [b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
        check_pieces(pattern, replace(setting, queries=length), pieces)


def run_problems(name: str, numbers: list[int] | range) -> None:
    for number in numbers:
        try:
            check_random_problem(name, number)
        except AssertionError as error:
            raise AssertionError(f"check_random_problem({name!r}, {number}): {error}") from error


@pytest.mark.parametrize("name", PATTERNS)
def test_random_problems_of_the_day(name: str) -> None:
    run_problems(name, TODAY)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_a_thousand_random_problems(name: str) -> None:
    run_problems(name, range(PROBLEMS))
