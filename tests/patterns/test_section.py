"""A section has the pairs of the longer sequence that it was cut from, and its closed form has them too."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer.patterns import Causal, Extent, Packed, Pattern, Section, Sinks, Strided, Window, parse
from gossamer.patterns.clauses import Clause, positions
from gossamer.patterns.section import places, runs_of, within
from gossamer.plan import Band, Columns, plan
from tests.patterns_list import HEADS, LENGTH, PATTERNS


def _cut(rng: np.random.Generator) -> tuple[int, int, NDArray[np.int64]]:
    """Some neighbouring queries, and keys: their own and some before them, or any."""
    first = int(rng.integers(0, LENGTH - 1))
    stop = int(rng.integers(first + 1, LENGTH + 1))
    if rng.random() < 0.5:
        start = max(first - int(rng.integers(0, 40)), 0)
        keys = np.concatenate([np.arange(0, start, int(rng.integers(1, 9))), np.arange(start, stop)])
    else:
        keys = np.append(np.flatnonzero(rng.random(LENGTH) < 0.3), LENGTH)[: LENGTH // 2]
        keys = np.unique(np.minimum(keys, LENGTH - 1))
    return first, stop, keys


def _pairs(clause: Clause, extent: Extent) -> NDArray[np.bool_]:
    q, k = positions(extent.queries)[:, None], positions(extent.keys)[None]
    seen = np.broadcast_to(clause.offsets.holds(q - k), (len(extent.queries), len(extent.keys))).copy()
    if clause.keys is not None:
        seen &= clause.keys[None]
    if clause.queries is not None:
        seen &= clause.queries[:, None]
    if clause.documents is not None:
        cuts = np.array(clause.documents)
        of_q, of_k = (np.searchsorted(cuts, x, "right") - 1 for x in (q, k))
        seen &= (of_q == of_k) & (of_q >= 0) & (of_q < len(cuts) - 1)
    return seen


@pytest.mark.parametrize("name", PATTERNS)
def test_it_has_the_pairs_of_the_sequence_that_it_was_cut_from(name: str) -> None:
    pattern = PATTERNS[name].for_head(HEADS[name] - 1)
    whole, rng = pattern.dense_mask(LENGTH), np.random.default_rng(0)
    for _ in range(12):
        first, stop, keys = _cut(rng)
        section = Section(pattern, [(first, stop, 1)], runs_of(keys))
        seen = whole[first:stop][:, keys]
        np.testing.assert_array_equal(section.dense_mask(stop - first, len(keys)), seen)
        assert plan(section, stop - first, len(keys), 1).pairs == seen.sum()
        extent = Extent.aligned(stop - first, len(keys))
        if (clauses := section.clauses(extent)) is not None:
            together = np.any([np.zeros_like(seen), *(_pairs(clause, extent) for clause in clauses)], axis=0)
            np.testing.assert_array_equal(together, seen)


@pytest.mark.parametrize("name", PATTERNS)
def test_its_text_reads_back(name: str) -> None:
    section = Section(PATTERNS[name], [(5, 20, 1)], [(0, 4, 2), (7, 20, 1)])
    assert parse(section.spec) == section


def _terms(pattern: Pattern, first: int, stop: int, keys: list[tuple[int, int, int]]) -> list[type]:
    section = Section(pattern, [(first, stop, 1)], keys)
    (group,) = plan(section, stop - first, len(places(keys)), 1).groups
    return [type(term) for term in group.terms]


def test_what_shards_ask_for_stays_bands_and_columns() -> None:
    """A window's own tokens, its last keys of the shard before, strided keys of all before, packed ones."""
    window, strided = Causal() & Window(64), Causal() & (Window(64) | Strided(10))
    own, before = [(1000, 2000, 1)], [(937, 1000, 1)]
    assert _terms(window, 1000, 2000, own) == [Band]
    assert _terms(window, 1000, 1063, before) == [Band]
    assert _terms(strided, 1000, 2000, own) == [Band, Columns]
    assert Columns in _terms(strided, 1000, 2000, [(0, 937, 10), *before])
    packed = Packed(Causal() & (Window(64) | Sinks(4)), [700, 600, 1700])
    assert _terms(packed, 1000, 2000, own) == [Band, Columns]


def test_runs_are_few_and_give_the_positions_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        keys = np.flatnonzero(rng.random(60) < rng.random())
        runs = runs_of(keys)
        np.testing.assert_array_equal(places(runs), keys)
        first, stop = sorted(rng.integers(0, 61, 2).tolist())
        inside = keys[(keys >= first) & (keys < stop)]
        np.testing.assert_array_equal(places(within(runs, first, stop)), inside - first)
    assert len(runs_of(np.arange(0, 100_000, 10))) == 1


@pytest.mark.parametrize(
    ("queries", "keys", "said"),
    [
        ([(0, 5, 1)], [], "keys"),
        ([(5, 5, 1)], [(0, 5, 1)], "at least one position"),
        ([(0, 5)], [(0, 5, 1)], r"give \(first, stop, step\)"),
        ([(0, 5, 1)], [(0, 5, 1), (4, 8, 1)], "ascend"),
        ([(0, 5, 0)], [(0, 5, 1)], "a step of queries"),
        ([(-1, 5, 1)], [(0, 5, 1)], "an end of queries"),
    ],
)
def test_what_is_no_section_is_refused(queries: list, keys: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Section(Causal(), queries, keys)
