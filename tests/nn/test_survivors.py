"""Lifetimes of scattered keys, and what of an excerpt survives."""

import numpy as np

from gossamer import Causal, Strided, Window
from gossamer.nn.survivors import BLOCK, lives, survivors
from gossamer.patterns.lifetimes import lifetimes

PATTERN = Causal() & (Window(9) | Strided(7))


def test_scattered_keys_have_the_lifetimes_of_their_positions():
    positions = np.array([0, 1, 6, BLOCK - 1, BLOCK, BLOCK + 8, 3 * BLOCK + 2, 7 * BLOCK])
    last, steady = lives(PATTERN, positions)
    found = lifetimes(PATTERN, 0, 8 * BLOCK)
    np.testing.assert_array_equal(last, found.last[positions])
    np.testing.assert_array_equal(steady, found.steady[positions])


def test_no_keys_have_no_lifetimes():
    last, steady = lives(PATTERN, np.empty(0, np.int64))
    assert len(last) == len(steady) == 0


def test_little_is_remembered_of_long_dense_prompts():
    survivors.cache_clear()
    for end in range(1000, 100_000, 1000):
        survivors(Causal(), 0, b"", 0, end)
    assert survivors.cache_info().currsize <= 8
    survivors.cache_clear()
