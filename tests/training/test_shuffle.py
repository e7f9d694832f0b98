"""A shuffle is a permutation, another for each key, with every thing equally likely at every place."""

import time
import tracemalloc

import numpy as np
import pytest

from gossamer.training.shuffle import Shuffle


def order_of(count: int, key: str) -> list[int]:
    shuffle = Shuffle(count, key)
    return [shuffle[place] for place in range(count)]


def test_everything_is_at_one_place() -> None:
    for count in (*range(1, 70), 255, 256, 257, 1023, 1025, 4097):
        assert sorted(order_of(count, f"{count}")) == list(range(count))


def test_another_key_is_another_order() -> None:
    assert order_of(50, "a") == order_of(50, "a") != order_of(50, "b")


def test_every_thing_is_equally_likely_everywhere() -> None:
    """Counts over 2,000 keys lie as a fair shuffle's do: chi-square within five standard deviations of its mean."""
    for count in (3, 7, 16):
        seen = np.zeros((count, count))
        for key in range(2000):
            seen[np.arange(count), order_of(count, f"{key}")] += 1
        expected = 2000 / count
        freedom = (count - 1) ** 2
        assert abs(((seen - expected) ** 2 / expected).sum() - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_are_torn_apart() -> None:
    """A fair shuffle keeps one pair of neighbours together in about two cases out of n: here, out of 20,000."""
    steps = np.diff(order_of(20_000, "far"))
    assert (steps == 1).sum() < 8
    assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1] + 0.5) < 0.02  # of independent draws


def test_a_trillion_windows_cost_nothing() -> None:
    tracemalloc.start()
    began = time.perf_counter()
    shuffle = Shuffle(10**12, "large")
    seen = {shuffle[place] for place in range(0, 10**12, 10**9)}
    assert time.perf_counter() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert len(seen) == 1000
    with pytest.raises(IndexError, match="place is -1; give one in"):
        shuffle[-1]
