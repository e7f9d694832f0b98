"""The draw behind `RandomBlocks`."""

import numpy as np
import pytest

from gossamer.patterns import RandomBlocks, presets
from gossamer.patterns.random_blocks import _drawn, _links


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


PINNED = [
    (RandomBlocks(1, 2, seed=3), [[], [0], [0, 1], [0, 2], [0, 1], [1, 3], [1, 4], [2, 6]]),
    (RandomBlocks(1, 2, seed=3, blocks=8), [[], [3, 4], [5, 6], [1, 6], [1, 6], [2, 3], [3, 4], []]),
]


@pytest.mark.parametrize(("pattern", "rows"), PINNED, ids=[str(pattern) for pattern, _ in PINNED])
def test_a_draw_never_changes(pattern: RandomBlocks, rows: list[list[int]]) -> None:
    """Weights that were trained with random blocks need the very same ones again, in any later release."""
    assert [np.flatnonzero(row).tolist() for row in drawn(pattern, 8)] == rows


def never_drawn(row: int, blocks: int) -> set[int]:
    """BigBird's rule, in words: what the row sees anyway, and the last but one from the second block and back."""
    pair = {1: {blocks - 2}, blocks - 2: {1}}
    return {0, blocks - 1, row - 1, row, row + 1} | pair.get(row, set())


@pytest.mark.parametrize("among", [None, 1, 5, 16])
@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 6, 7, 8, 16, 30])
def test_the_two_sided_form_draws_that_many_new_blocks_or_all(blocks: int, count: int, among: int | None) -> None:
    among = among and min(among, blocks)
    table = drawn(RandomBlocks(3, count, 4, blocks, among), blocks)
    for row in range(blocks):
        middle = 0 < row < blocks - 1
        legal = set(range(among or blocks)) - never_drawn(row, blocks) if middle else set()
        picked = set(np.flatnonzero(table[row]).tolist())
        assert picked <= legal
        assert len(picked) == min(count, len(legal))


def test_the_two_sided_form_looks_both_ways_and_ends_with_its_blocks() -> None:
    pattern = RandomBlocks(2, 2, 0, blocks=40)
    table = drawn(pattern, 60)
    assert np.triu(table, 2).any() and np.tril(table, -2).any()
    assert not table[40:].any() and not table[:, 40:].any()
    assert np.array_equal(drawn(pattern, 25), table[:25, :25])


def test_every_legal_block_is_as_likely() -> None:
    """300 seeds draw 2 of the 15 blocks that row 9 of 20 may draw: each 40 times, give or take 5 deviations."""
    times = sum(drawn(RandomBlocks(1, 2, seed, blocks=20), 20)[9].astype(int) for seed in range(300))
    legal = [block for block in range(20) if block not in never_drawn(9, 20)]
    assert times.sum() == 600 == times[legal].sum()
    assert abs(times[legal] - 40).max() < 5 * (300 * 2 / 15 * 13 / 15) ** 0.5


def test_heads_layers_and_seeds_draw_apart() -> None:
    """Each of 2 seeds × 2 layers × 3 heads draws blocks of its own, and the same ones whenever it is asked."""

    def masks() -> list[bytes]:
        made = [presets.bigbird_itc(30, 3, 1, seed=seed, layer=layer) for seed in (0, 1) for layer in (0, 1)]
        return [mask.tobytes() for pattern in made for mask in pattern.dense_mask(30)]

    once = masks()
    assert len(set(once)) == 12
    _drawn.cache_clear()
    _links.cache_clear()
    assert masks() == once


@pytest.mark.parametrize("blocks", [6, 11, 12, 40])
def test_each_middle_row_of_bigbird_has_exactly_its_random_blocks_besides(blocks: int) -> None:
    """Window and global blocks are 5 of a row's blocks (4 where the window reaches an end), and 3 more are new."""
    for mask in presets.bigbird_itc(blocks, heads=2, block=1).dense_mask(blocks):
        for row, seen in enumerate(mask.sum(axis=1)):
            if row in (0, blocks - 1):
                assert seen == blocks
            else:
                legal = blocks - len(never_drawn(row, blocks))
                fixed = 4 if row in (1, blocks - 2) else 5
                assert seen == fixed + min(3, legal)
