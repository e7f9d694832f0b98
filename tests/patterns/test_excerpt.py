"""Excerpts of any pattern: their closed form is what a look at every pair finds, wherever they start."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.patterns import Excerpt, Pattern, Strided, Tokens
from tests.checks import check_plan
from tests.patterns.strategies import EXPRESSIONS

SIZES = [(1, 30), (6, 30), (30, 30), (40, 30), (0, 3), (3, 0)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    "pattern",
    [
        Excerpt(Tokens([2, 64, 100]).T, kept=(0, 2, 9), start=90),
        Excerpt(Strided(7).T, kept=(), start=40),
        Excerpt(Strided(7).T, kept=(3, 7), start=2**40),
    ],
    ids=str,
)
def test_an_excerpt_of_chosen_rows(pattern: Pattern, sizes: tuple[int, int]) -> None:
    """Rows say nothing of keys, and are asked for each kept key all the same."""
    check_plan(pattern, *sizes)


@settings(max_examples=100, deadline=None)
@given(
    EXPRESSIONS, st.sets(st.integers(0, 39), max_size=6), st.integers(40, 60), st.integers(0, 50), st.integers(0, 50)
)
def test_any_excerpt(pattern: Pattern, kept: set[int], start: int, queries: int, keys: int) -> None:
    check_plan(Excerpt(pattern, sorted(kept), start), queries, keys)
