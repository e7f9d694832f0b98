"""How long a key is read: never said too short, and exact for what is made of windows and sets of keys."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.patterns.lifetimes import FOREVER, NEVER, lifetimes
from tests.patterns_list import CAUSAL

LENGTH, KEYS = 700, 130
CAREFUL = {"random blocks", "bigbird"}
"""What is drawn far ahead is not looked up, so every key is said to be read forever."""


def read_at(name: str, head: int) -> tuple[np.ndarray, np.ndarray]:
    """(distance of each key's last reader, whether it has one at every distance up to there), by looking at all."""
    mask = CAUSAL[name].for_head(head).dense_mask(LENGTH)[:, :KEYS]
    distance = np.arange(LENGTH)[:, None] - np.arange(KEYS)
    last = np.where(mask, distance, NEVER).max(axis=0)
    between = (distance >= 0) & (distance <= last)
    return last, (mask | ~between).all(axis=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_lifetimes_are_those_that_a_look_at_every_pair_finds(name: str) -> None:
    cuts = CAUSAL[name].head_cuts or (0, 1)
    for head in range(cuts[-1]):
        last, steady = read_at(name, head)
        found = lifetimes(CAUSAL[name].for_head(head), 0, KEYS)
        assert (found.last >= last).all()
        if name not in CAREFUL:
            ends = found.last != FOREVER
            np.testing.assert_array_equal(found.last[ends], last[ends])
            assert (last[~ends] > LENGTH - KEYS - 100).all()
        assert (steady | ~found.steady).all(), "steadiness is never said of a key that somebody skips"


@pytest.mark.parametrize("name", ["causal", "causal window", "streaming", "sparse transformer", "causal strided"])
def test_what_windows_and_sets_of_keys_make_is_steady(name: str) -> None:
    assert lifetimes(CAUSAL[name], 0, KEYS).steady.all()
