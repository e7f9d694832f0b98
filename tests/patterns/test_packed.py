"""Packs of any pattern: their closed form is what a look at every pair finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.patterns import Causal, Documents, Packed, Pattern, Sinks, presets
from tests.checks import check_plan
from tests.patterns.strategies import EXPRESSIONS

SIZES = [(1, 60), (60, 60), (20, 60), (60, 20), (0, 3), (3, 0)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    "pattern",
    [
        Packed(Packed(Causal(), [20, 9]), [35, 1, 40]),
        Packed(Causal() & Documents([4, 3]), [10, 50]),
        Packed(presets.sparse_transformer(12), [30, 2**50]),
    ],
    ids=["in a pack", "of documents", "without end"],
)
def test_a_pack_of_documents_that_end_before_or_go_on(pattern: Pattern, sizes: tuple[int, int]) -> None:
    check_plan(pattern, *sizes)


def test_bounds_of_one_key_are_those_of_the_pattern_within_its_document() -> None:
    """For queries far behind the document too: so is known how long a key is read."""
    pattern, zero = Packed(Causal() & Sinks(1), [4, 4]), np.array(0)
    may, must = pattern.bounds(zero + 4, zero + 100, np.array([4, 5]), np.array([4, 5]))
    assert may.tolist() == [True, False]
    assert not must.any()


@settings(max_examples=100, deadline=None)
@given(EXPRESSIONS, st.lists(st.integers(1, 25), min_size=1, max_size=5), st.integers(0, 70), st.integers(0, 70))
def test_any_pack(pattern: Pattern, lengths: list[int], queries: int, keys: int) -> None:
    check_plan(Packed(pattern, lengths), queries, keys)
