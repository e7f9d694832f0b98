"""The draw behind `RandomBlocks`."""

import numpy as np
import pytest

from gossamer.patterns import RandomBlocks


def drawn(pattern: RandomBlocks, blocks: int) -> np.ndarray:
    """[blocks, blocks] which key block each query block drew."""
    return pattern.dense_mask(blocks * pattern.block)[:: pattern.block, :: pattern.block]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_block_draws_that_many_earlier_ones_or_all(count: int) -> None:
    table = drawn(RandomBlocks(3, count, seed=4), 40)
    assert not np.triu(table).any()
    assert table.sum(1).tolist() == [min(count, row) for row in range(40)]


def test_a_block_is_drawn_as_a_whole() -> None:
    pattern = RandomBlocks(4, 2, seed=0)
    whole = np.kron(drawn(pattern, 9), np.ones((4, 4), bool))
    assert np.array_equal(pattern.dense_mask(36), whole)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 100])
def test_the_length_does_not_change_the_draw(length: int) -> None:
    pattern = RandomBlocks(2, 2, seed=7)
    assert np.array_equal(pattern.dense_mask(length), pattern.dense_mask(200)[:length, :length])
    assert np.array_equal(pattern.dense_mask(1, length)[0], pattern.dense_mask(length)[-1])


def test_another_seed_is_another_draw() -> None:
    tables = [drawn(RandomBlocks(1, 2, seed), 100) for seed in (0, 1, 2**40)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(tables[a], tables[b])


def test_every_earlier_block_is_as_likely() -> None:
    """200 seeds draw 2 of 20 blocks: each block 20 times, give or take 5 standard deviations."""
    times = sum(drawn(RandomBlocks(1, 2, seed), 21)[20].astype(int) for seed in range(200))
    assert times.sum() == 400
    assert abs(times[:20] - 20).max() < 5 * (200 * 0.1 * 0.9) ** 0.5


def test_a_count_beyond_all_blocks_draws_them_all() -> None:
    assert np.array_equal(drawn(RandomBlocks(1, 10**9, seed=0), 30), np.tri(30, k=-1, dtype=bool))
