"""A shard reads what its queries see of others, and what windows read does not grow with the sequence."""

from itertools import pairwise

import numpy as np
import pytest

from gossamer.parallel import Shards
from gossamer.parallel.heads import heads_of
from gossamer.parallel.reads import reads
from gossamer.patterns import Causal, Dilated, Pattern, PerHead, RandomBlocks, Sinks, Strided, Tokens, Window
from gossamer.patterns.section import counted, places
from tests.patterns_list import HEADS, LENGTH, PATTERNS

CUTS = ((0, 68, LENGTH), (0, 5, 60, 61, LENGTH))


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pair_is_in_the_shard_or_read_or_of_a_row(name: str, cuts: tuple[int, ...]) -> None:
    for head in range(HEADS[name]):
        pattern = PATTERNS[name].for_head(head)
        missing = pattern.dense_mask(LENGTH)
        for first, stop in pairwise(cuts):
            found = reads(pattern, LENGTH, first, stop)
            missing[first:stop, first:stop] = False
            missing[places(found.rows)] = False
            for side in found.sides:
                keys = places(side.keys)
                assert first <= side.first < side.stop <= stop
                assert (keys < first).all() or (keys >= stop).all()
                missing[np.ix_(range(side.first, side.stop), keys)] = False
        assert not missing.any(), np.argwhere(missing)[:5]


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        (Causal() & Window(1024), 1023),
        (Window(100), 198),
        (Causal() & Dilated(size=8, step=3), 21),
        (Causal() & (Window(64) | Sinks(4)), 67),
        (Causal() & (Window(64) & ~Window(9)), 63),
    ],
)
def test_bands_read_as_much_of_any_sequence(pattern: Pattern, keys: int) -> None:
    for length in (8_192, 1_048_576):
        shard = length // 4
        found = reads(pattern, length, shard, 2 * shard)
        assert sum(counted(side.keys) for side in found.sides) == keys
        assert not found.rows


def test_a_window_longer_than_a_shard_reaches_over_several() -> None:
    (side,) = reads(Causal() & Window(50), 100, 60, 70).sides
    assert (side.keys, side.first, side.stop) == (((11, 60, 1),), 60, 70)


def test_columns_are_read_one_by_one() -> None:
    (side,) = reads(Causal() & (Window(5) | Strided(10)), 1000, 500, 600).sides
    assert side.keys == ((0, 491, 10), (496, 500, 1))


def test_queries_that_see_much_travel_and_read_nothing() -> None:
    pattern = Causal() & (Window(4) | Tokens([77]).T)
    assert reads(pattern, 100, 50, 100).rows == ((77, 78, 1),)
    assert [counted(side.keys) for side in reads(pattern, 100, 50, 100).sides] == [3]


def test_blocks_read_the_blocks_that_are_seen() -> None:
    pattern = RandomBlocks(16, count=1, seed=0) & Causal()
    mask = pattern.dense_mask(256)
    (side,) = reads(pattern, 256, 240, 256).sides
    seen = np.flatnonzero(mask[240:].any(0)) // 16
    assert set((places(side.keys) // 16).tolist()) == set(seen[seen < 15].tolist())


def test_heads_are_cut_where_key_heads_are() -> None:
    pattern = PerHead([(Causal(), 1), (Window(4), 6), (Strided(2), 1)])
    runs = [(run.queries, run.keys) for run in heads_of(pattern, 8, 4)]
    assert runs == [
        (slice(0, 1), slice(0, 1)), (slice(1, 2), slice(0, 1)), (slice(2, 6), slice(1, 3)),
        (slice(6, 7), slice(3, 4)), (slice(7, 8), slice(3, 4)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "rank", "said"),
    [((0,), 0, "bounds"), ((1, 3), 0, "bounds"), ((0, 3, 3), 0, "bounds"), ((0, 3, 5), 2, "rank")],
)
def test_what_are_no_shards_is_refused(bounds: tuple[int, ...], rank: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Shards(bounds, rank)
