"""Sets of distances: every operation against the sets themselves, written out."""

import itertools

import numpy as np
import pytest

from gossamer.patterns.offsets import UNBOUNDED, Irregular, Offsets

DISTANCES = np.arange(-20, 21)
SETS = [
    Offsets(low, high, step, on_step)
    for low, high in ((-UNBOUNDED, UNBOUNDED), (0, UNBOUNDED), (-5, 9), (3, 3), (4, 2))
    for step, on_step in ((1, True), (1, False), (2, True), (2, False), (3, True), (6, True), (6, False))
]
PAIRS = list(itertools.product(SETS, SETS))


def written_out(offsets: Offsets) -> set[int]:
    return {
        d for d in DISTANCES.tolist()
        if offsets.low <= d <= offsets.high and (d % offsets.step == 0) == offsets.on_step
    }  # fmt: skip


def test_holds() -> None:
    for a in SETS:
        assert set(DISTANCES[a.holds(DISTANCES)].tolist()) == written_out(a)
        assert not a.empty or not written_out(a)


def test_intersection_or_none() -> None:
    regular = 0
    for a, b in PAIRS:
        try:
            assert written_out(a & b) == written_out(a) & written_out(b)
            regular += 1
        except Irregular:
            assert a.step != b.step and not (a.on_step and b.on_step)
    assert regular > len(PAIRS) / 2


def test_difference_is_disjoint_or_none() -> None:
    for a, b in PAIRS:
        try:
            parts = [written_out(part) for part in a - b]
        except Irregular:
            continue
        assert set().union(*parts) == written_out(a) - written_out(b)
        assert sum(map(len, parts)) == len(set().union(*parts))


def test_transposed_changes_the_sign() -> None:
    for a in SETS:
        assert written_out(a.transposed()) == {-d for d in written_out(a)}


@pytest.mark.parametrize("a", SETS, ids=str)
def test_bounds_are_right_and_tight_on_single_distances(a: Offsets) -> None:
    low, high = np.array(list(itertools.combinations_with_replacement(range(-9, 14), 2))).T
    may, must = a.bounds(low, high)
    for first, last, some, every in zip(low, high, may, must, strict=True):
        held = written_out(a) & set(range(first, last + 1))
        assert some or not held
        assert not every or len(held) == last - first + 1
        if first == last and not a.empty:
            assert some == every == bool(held)
