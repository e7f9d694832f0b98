"""The plan: disjoint terms that cover the pattern, in memory linear in the lengths, cached, and readable."""

import gc
import logging
import re
import sys
import threading
import tracemalloc
from functools import _lru_cache_wrapper

import pytest

from gossamer.patterns import (
    Blocks,
    Causal,
    Dilated,
    Pattern,
    PerHead,
    RandomBlocks,
    Sinks,
    Strided,
    Tokens,
    Window,
    parse,
    presets,
)
from gossamer.plan import Band, Columns, Plan, Rows, plan, resized
from gossamer.plan import Blocks as BlockTerm
from tests.checks import check_plan
from tests.patterns_list import LENGTH, PATTERNS, REGULAR

MILLION = 2**20
LAYERED = PerHead([(presets.bigbird(64, random=1, seed=seed), 1) for seed in range(2)] + [(Window(3), 1)])
SIZES = [(LENGTH, LENGTH), (50, LENGTH), (LENGTH, 50), (1, LENGTH), (2, 1), (0, 3), (3, 0), (0, 0)]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_terms_are_disjoint_and_complete(name: str, sizes: tuple[int, int]) -> None:
    check_plan(PATTERNS[name], *sizes)


@pytest.mark.parametrize("sizes", [(300, 300), (200, 300), (300, 200)], ids=str)
def test_blocks_that_take_windows_along_are_disjoint_and_complete(sizes: tuple[int, int]) -> None:
    check_plan(LAYERED, *sizes)


TERMS = [
    (Causal() & Window(20), [Band]),
    (Causal() & Dilated(5, 3), [Band]),
    (Causal() & Strided(7), [Columns]),
    (Causal() & (Window(20) | Strided(7)), [Band, Columns]),
    (Tokens([3]).T, [Rows]),
    (presets.longformer(16, (0, 50)), [Band, Columns, Columns, Rows, Rows]),
    (Causal() & Window(60) & ~Window(9), [Band]),
    (RandomBlocks(16, 2, 0), [BlockTerm]),
    (Causal() & (Window(20) | RandomBlocks(16, 2, 0)), [Band, BlockTerm]),
    (Causal() & ~Causal(), []),
    (RandomBlocks(64, 1, 0) | Sinks(64) | Sinks(64).T, [BlockTerm]),
    (presets.bigbird(64, random=1), [BlockTerm]),
    (Causal() & (Window(6) | RandomBlocks(64, 1, 0)), [Band, BlockTerm]),
    (RandomBlocks(64, 1, 0) | Tokens([3]), [Columns, BlockTerm]),
]


@pytest.mark.parametrize(("pattern", "terms"), TERMS, ids=[str(pattern) for pattern, _ in TERMS])
def test_a_pattern_becomes_the_cheapest_terms(pattern: object, terms: list[type]) -> None:
    found = [type(term) for term in plan(pattern, LENGTH, LENGTH, 2).groups[0].terms]
    assert sorted(found, key=str) == sorted(terms, key=str)


def test_heads_that_share_a_pattern_share_a_group() -> None:
    made = plan(presets.local_global(8, 4, window=16), 100, 100, 12)
    assert [(group.first, group.last) for group in made.groups] == [(0, 8), (8, 12)]


def test_heads_that_differ_in_blocks_alone_share_a_group() -> None:
    """BigBird's random blocks of each head: one term, one layout for each pattern, one launch."""
    drawn = [RandomBlocks(16, 1, seed) | Window(3) for seed in range(3)]
    pattern = PerHead([(drawn[0], 1), (drawn[1], 2), (drawn[0], 1), (drawn[2], 1)])
    (group,) = plan(pattern, LENGTH, LENGTH, 5).groups
    band, blocks = group.terms
    assert isinstance(band, Band) and isinstance(blocks, BlockTerm)
    assert blocks.layouts.tolist() == [0, 1, 1, 0, 2] and blocks.starts.shape == (3, 10)
    assert [(part.first, part.last, part.pattern) for part in group.apart] == [
        (0, 1, drawn[0]), (1, 3, drawn[1]), (3, 4, drawn[0]), (4, 5, drawn[2]),
    ]  # fmt: skip
    assert "in 3 layouts" in blocks.describe()
    other = resized(plan(pattern, LENGTH, LENGTH, 5), 50, 60)
    assert other.pairs == pattern.density(50, 60) * 50 * 60 * 5


@pytest.mark.parametrize(
    "other",
    [Window(3), RandomBlocks(16, 1, 9) | Window(4), RandomBlocks(32, 1, 9) | Window(3), RandomBlocks(16, 1, 9)],
    ids=str,
)
def test_heads_that_differ_in_more_than_blocks_do_not(other: Pattern) -> None:
    pattern = PerHead([(RandomBlocks(16, 1, 0) | Window(3), 1), (other, 1)])
    assert len(plan(pattern, LENGTH, LENGTH, 2).groups) == 2


def test_heads_of_one_pattern_written_twice_are_one_layout() -> None:
    made = plan(PerHead([(RandomBlocks(16, 1, 0), 1), (RandomBlocks(16, 1, 0), 1)]), LENGTH, LENGTH, 2)
    assert made.apart is made and made.groups[0].pattern == RandomBlocks(16, 1, 0)


def test_a_wide_band_and_scattered_columns_stay_apart_from_blocks() -> None:
    """As blocks they would be many more, or lose what bands do faster."""
    for regular, kind in ((Window(600), Band), (Strided(10), Columns)):
        terms = plan(regular | RandomBlocks(64, 2, 0), 4096, 4096, 1).groups[0].terms
        assert [type(term) for term in terms] == [kind, BlockTerm]


@pytest.mark.parametrize(
    ("grain", "size"), [(3, 16), (16, 16), (24, 16), (40, 32), (64, 64), (96, 32), (100, 64), (128, 128), (384, 128)]
)
def test_blocks_are_powers_of_two_that_divide_the_grain_where_they_can(grain: int, size: int) -> None:
    (term,) = plan(Blocks(grain, ["1"]), 500, 500, 1).groups[0].terms
    assert term.size == size


def test_blocks_follow_the_grain_of_the_pattern() -> None:
    (term,) = plan(RandomBlocks(32, 1, 0), 256, 256, 1).groups[0].terms
    assert term.size == 32
    assert (term.tile == -1).all() and len(term.tiles) == 0
    assert len(term.columns) == 7
    (fine,) = plan(Blocks(3, ["1", "1"]), 6, 6, 1).groups[0].terms
    assert fine.size == 16


def test_equal_masks_are_kept_once() -> None:
    (term,) = plan(RandomBlocks(24, 1, 0) & ~Window(1), 24 * 64, 24 * 64, 1).groups[0].terms
    assert len(term.tiles) < 24 and len(term.columns) >= 63


@pytest.mark.parametrize("name", REGULAR)
def test_a_million_tokens_take_linear_memory(name: str) -> None:
    """Some arrays of a number a token: n×n bits would be 128 GiB, and one bit a block of 64 × 64 still 32 MiB."""
    plan.cache_clear()
    heads = REGULAR[name].head_cuts[-1] if REGULAR[name].head_cuts else 1
    tracemalloc.start()
    made = plan(REGULAR[name], MILLION, MILLION, heads)
    kept, peak = tracemalloc.get_traced_memory()
    pairs = made.pairs
    counting = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not any(isinstance(term, BlockTerm) for group in made.groups for term in group.terms)
    assert kept <= 20 * MILLION, f"{kept:,} bytes stay"
    assert peak <= 40 * MILLION, f"{peak:,} bytes at the highest moment"
    assert counting <= 150 * MILLION, f"{counting:,} bytes to count"
    assert pairs == REGULAR_PAIRS[name]


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _window(size: int, n: int = MILLION) -> int:
    return _triangle(size) + (n - size) * size


def _columns(every: int, offset: int = 0) -> int:
    return sum(MILLION - key for key in range(offset, MILLION, every))


REGULAR_PAIRS = {
    "causal": _triangle(MILLION),
    "causal window": _window(512),
    "causal dilated": sum(min(64, q // 16 + 1) for q in range(MILLION)),
    "causal strided": _columns(1000),
    "streaming": _window(1024) + sum(min(4, max(0, q - 1023)) for q in range(MILLION)),
    "sparse transformer": _window(512) + sum(max(0, MILLION - 512 - key) for key in range(511, MILLION, 512)),
    "longformer": (
        sum(min(q, 256) + min(MILLION - 1 - q, 256) + 1 for q in range(MILLION))
        + 2 * sum(MILLION - (min(q, 256) + 257) for q in range(0, 1000, 10))
        - sum(abs(a - b) > 256 for a in range(0, 1000, 10) for b in range(0, 1000, 10))
    ),
    "packed": 64 * _triangle(2**14),
    "local and global": 8 * _window(512) + 4 * _columns(1000),
    "a gap": _window(4096) - _window(512),
}
"""Visible pairs, counted on paper."""


def test_the_share_is_that_of_all_heads() -> None:
    made = plan(PerHead([(Causal(), 1), (Causal() & Window(1), 3)]), 4, 4, 4)
    assert made.pairs == 10 + 3 * 4
    assert made.share == made.pairs / 64 == PerHead([(Causal(), 1), (Causal() & Window(1), 3)]).density(4)
    assert plan(Causal(), 0, 0, 1).share == 0.0


def test_print_says_what_will_run() -> None:
    pattern = PerHead([(presets.longformer(8, (0, 5)), 2), (Causal() & Dilated(3, 4), 1), (RandomBlocks(16, 1, 0), 1)])
    text = str(plan(pattern & Causal(), 64, 64, 4))
    assert text.splitlines()[0] == "64 queries × 64 keys, 4 heads: 1,794 visible pairs, 10.950% of all"
    for part in (
        "heads 0-1: ",
        "Band: from 4 before to itself",
        "Columns: 2 gathered keys, ",
        "heads 2-2: ",
        "Band: from 8 before to itself, every 4th",
        "Blocks: 3 of 16 × 16, 0 of them partial with 0 distinct masks",
    ):
        assert part in text, f"{part!r} is missing in\n{text}"
    assert "nothing is visible" in str(plan(Causal() & ~Causal(), 4, 4, 1))
    assert "within each of 2 documents" in str(plan(parse("Causal() & Documents([2, 2])"), 4, 4, 1))
    assert re.search(r"heads 0-0: Tokens\(positions=\(0, 1, .* …", str(plan(Tokens(range(500)), 4, 4, 1)))


def test_a_plan_is_made_once() -> None:
    assert plan(Causal() & Window(3), 9, 9, 2) is plan(Causal() & Window(3), 9, 9, 2)
    first = plan(Causal() & Window(3), 9, 9, 2)
    for other in (
        plan(Causal() & Window(4), 9, 9, 2),
        plan(Causal() & Window(3), 8, 9, 2),
        plan(Causal() & Window(3), 9, 8, 2),
        plan(Causal() & Window(3), 9, 9, 3),
    ):
        assert other is not first


def test_thousands_of_lengths_leave_memory_flat() -> None:
    pattern = Causal() & (Window(64) | Strided(10))
    for length in range(300):
        plan(pattern, 1, 1000 + length, 1)
    gc.collect()
    tracemalloc.start()
    for length in range(1500):
        plan(pattern, 1, 1300 + length % 700, 1)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert plan.cache_info().currsize == plan.cache_info().maxsize == 256
    assert grown < 2 * 2**20, f"{grown:,} bytes more"


def test_every_cache_of_the_package_is_bounded() -> None:
    import gossamer.attention  # noqa: F401

    modules = [module for name, module in list(sys.modules.items()) if name.startswith("gossamer")]
    caches = [x for module in modules for x in vars(module).values() if isinstance(x, _lru_cache_wrapper)]
    assert plan in caches
    assert [cache for cache in caches if cache.cache_parameters()["maxsize"] is None] == []


def test_many_threads_meet_cold_caches() -> None:
    patterns = [RandomBlocks(8, 2, seed) | Window(3) | Strided(5) for seed in range(8)]
    right = [plan(pattern, 300, 300, 2).pairs for pattern in patterns]
    for _ in range(5):
        plan.cache_clear()
        found: dict[int, list[int]] = {}
        start = threading.Barrier(8)

        def work(number: int, found: dict = found, start: threading.Barrier = start) -> None:
            start.wait()
            found[number] = [plan(parse(pattern.spec), 300, 300, 2).pairs for pattern in patterns]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == dict.fromkeys(range(8), right)


@pytest.mark.parametrize("sizes", [(-1, 4, 1), (4, -1, 1), (4, 4, 0)], ids=str)
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        plan(Causal(), *sizes)


def test_debug_says_what_was_planned(caplog: pytest.LogCaptureFixture) -> None:
    plan.cache_clear()
    with caplog.at_level(logging.DEBUG, "gossamer"):
        made: Plan = plan(Causal() & Window(3), 9, 9, 2)
    assert f"planned {made}" in caplog.messages
