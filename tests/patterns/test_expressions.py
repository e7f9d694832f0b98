"""Any expression: its closed form, its blocks, its bounds, its count and its text agree with its dense mask."""

import numpy as np
import pytest
from hypothesis import given, settings

from gossamer.patterns import Causal, Extent, Pattern, RandomBlocks, Strided, Tokens, Window
from gossamer.patterns.counting import visible_keys
from gossamer.patterns.normal_form import normal_form
from tests.checks import (
    check_bounds,
    check_cover,
    check_normal_form,
    check_plan,
    check_text,
)
from tests.patterns.strategies import EXPRESSIONS, LENGTHS
from tests.patterns_list import LENGTH, PATTERNS

every_pattern = pytest.mark.parametrize("name", PATTERNS)
SIZES = [(LENGTH, LENGTH), (50, LENGTH), (LENGTH, 50), (1, LENGTH), (1, 1), (0, 5), (5, 0)]


def _for_one_head(pattern: Pattern) -> list[Pattern]:
    return [pattern.for_head(first) for first in pattern.head_cuts[:-1]] or [pattern]


@every_pattern
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_closed_form_and_blocks_of_the_listed_patterns(name: str, sizes: tuple[int, int]) -> None:
    for pattern in _for_one_head(PATTERNS[name]):
        check_normal_form(pattern, *sizes)
        check_cover(pattern, *sizes, size=16)


@every_pattern
def test_bounds_of_the_listed_patterns(name: str) -> None:
    for pattern in _for_one_head(PATTERNS[name]):
        check_bounds(pattern, 90, LENGTH, rectangles=300)
        check_bounds(pattern, LENGTH, 90, rectangles=300, seed=1)


@every_pattern
def test_text_of_the_listed_patterns(name: str) -> None:
    check_text(PATTERNS[name])
    check_text(~PATTERNS[name].T)


@settings(max_examples=150)
@given(EXPRESSIONS, LENGTHS, LENGTHS)
def test_any_expression(pattern: Pattern, queries: int, keys: int) -> None:
    _check_everything(pattern, queries, keys)


@pytest.mark.slow
@settings(max_examples=5000)
@given(EXPRESSIONS, LENGTHS, LENGTHS)
def test_thousands_of_expressions(pattern: Pattern, queries: int, keys: int) -> None:
    _check_everything(pattern, queries, keys)


def _check_everything(pattern: Pattern, queries: int, keys: int) -> None:
    check_text(pattern)
    check_normal_form(pattern, queries, keys)
    check_plan(pattern, queries, keys)
    check_cover(pattern, queries, keys, size=16)
    if queries and keys:
        check_bounds(pattern, queries, keys, rectangles=30)
    assert pattern.density(queries, keys) == pytest.approx(
        pattern.dense_mask(queries, keys).sum() / max(queries * keys, 1)
    )


@settings(max_examples=60)
@given(EXPRESSIONS, EXPRESSIONS, LENGTHS, LENGTHS)
def test_operators_act_pair_by_pair(a: Pattern, b: Pattern, queries: int, keys: int) -> None:
    left, right = a.dense_mask(queries, keys), b.dense_mask(queries, keys)
    assert np.array_equal((a & b).dense_mask(queries, keys), left & right)
    assert np.array_equal((a | b).dense_mask(queries, keys), left | right)
    assert np.array_equal((~a).dense_mask(queries, keys), ~left)
    assert np.array_equal(a.T.dense_mask(queries), a.dense_mask(queries).T)


@settings(max_examples=60)
@given(EXPRESSIONS, LENGTHS)
def test_the_keys_of_each_query_are_counted(pattern: Pattern, length: int) -> None:
    extent = Extent.aligned(length, length)
    form = normal_form(pattern, extent)
    if form.rest is None:
        seen = sum((visible_keys(clause, extent) for clause in form.clauses), np.zeros(length, int))
        assert np.array_equal(seen, pattern.dense_mask(length).sum(1))


def test_a_form_of_many_clauses_is_given_up_early() -> None:
    """Twenty crossing sets would fall into more than a thousand disjoint clauses."""
    crossing = Causal() & ~Causal()
    for step in range(2, 22):
        crossing |= Window(3 * step) & Strided(step) & Tokens(range(0, 512, step)).T
    for pattern in (crossing, ~crossing):
        form = normal_form(pattern, Extent.aligned(512, 512))
        assert len(form.clauses) <= 64
        check_normal_form(pattern, 512, 512)


def test_a_tangle_of_irregular_patterns_stays_short() -> None:
    """The remainder of an expression grows with the expression, and not twofold at each of its levels."""
    tangle = RandomBlocks(2, 1, seed=0)
    for seed in range(1, 30):
        tangle = (tangle | Window(seed)) & RandomBlocks(2, 2, seed)
    rest = normal_form(tangle, Extent.aligned(64, 64)).rest
    assert len(rest.spec) < 10 * len(tangle.spec)
