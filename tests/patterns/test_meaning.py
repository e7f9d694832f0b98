"""What each pattern says, held against a definition in plain Python that shares nothing with it."""

from collections.abc import Callable

import numpy as np
import pytest

from gossamer import patterns
from gossamer.patterns import (
    Blocks,
    BlockWindow,
    Causal,
    Dilated,
    Documents,
    GlobalBlocks,
    Pattern,
    PerHead,
    Sinks,
    Strided,
    Tokens,
    Window,
    presets,
)
from tests.patterns_list import PATTERNS

TABLE = ["100", "011", "010", "111"]


def check_meaning(pattern: Pattern, says: Callable[[int, int], bool], queries: int, keys: int) -> None:
    """The dense mask is the definition, pair by pair; the last query stands at the last key."""
    right = [[says(keys - queries + q, k) for k in range(keys)] for q in range(queries)]
    assert np.array_equal(pattern.dense_mask(queries, keys), np.array(right, bool).reshape(queries, keys))


def _document(lengths: list[int], position: int) -> int | None:
    ends = np.cumsum(lengths)
    return int(np.searchsorted(ends, position, "right")) if 0 <= position < ends[-1] else None


DEFINITIONS: list[tuple[Pattern, Callable[[int, int], bool]]] = [
    (Causal(), lambda q, k: k <= q),
    (Window(1), lambda q, k: k == q),
    (Window(6), lambda q, k: abs(q - k) < 6),
    (Causal() & Window(6), lambda q, k: k in range(q - 5, q + 1)),
    (Dilated(3, step=4), lambda q, k: q - k in (-8, -4, 0, 4, 8)),
    (Dilated(5, step=1), lambda q, k: abs(q - k) < 5),
    (Strided(7), lambda q, k: k % 7 == 0),
    (Strided(5, offset=3), lambda q, k: k in range(3, 1000, 5)),
    (Sinks(4), lambda q, k: k in (0, 1, 2, 3)),
    (Tokens([9, 2, 2]), lambda q, k: k in (2, 9)),
    (Tokens([9, 2]).T, lambda q, k: q in (2, 9)),
    (Blocks(6, TABLE), lambda q, k: 0 <= q < 24 and k < 18 and TABLE[q // 6][k // 6] == "1"),
    (
        Documents([5, 1, 9]),
        lambda q, k: _document([5, 1, 9], q) is not None and _document([5, 1, 9], q) == _document([5, 1, 9], k),
    ),
    (BlockWindow(4), lambda q, k: q >= 0 and abs(q // 4 - k // 4) <= 1),
    (BlockWindow(5, reach=0), lambda q, k: q >= 0 and q // 5 == k // 5),
    (
        BlockWindow(3, reach=2, start=7),
        lambda q, k: q >= 7 and k >= 7 and abs((q - 7) // 3 - (k - 7) // 3) <= 2,
    ),
    (GlobalBlocks(4, [3, 0, 3]), lambda q, k: k // 4 in (0, 3)),
    (GlobalBlocks(4, [3, 0]).T, lambda q, k: q // 4 in (0, 3)),
    (~Causal(), lambda q, k: k > q),
    (Causal().T, lambda q, k: k >= q),
    (presets.streaming(4, sinks=2), lambda q, k: k <= q and (q - k < 4 or k < 2)),
    (presets.sparse_transformer(4), lambda q, k: k <= q and (q - k < 4 or k % 4 == 3)),
    (presets.longformer(6, (0, 7)), lambda q, k: abs(q - k) <= 3 or q in (0, 7) or k in (0, 7)),
    (
        presets.longformer(6, (0,), dilation=2),
        lambda q, k: (abs(q - k) <= 6 and (q - k) % 2 == 0) or q == 0 or k == 0,
    ),
    (
        presets.bigbird_itc(blocks=8, heads=1, block=4, random=0),
        lambda q, k: q // 4 in (0, 7) or k // 4 in (0, 7) or (q >= 0 and abs(q // 4 - k // 4) <= 1),
    ),
    (
        presets.bigbird_etc(extra=5, block=4),
        lambda q, k: q in range(5) or k < 5 or (q >= 5 and abs((q - 5) // 4 - (k - 5) // 4) <= 1),
    ),
    (presets.prefix_lm(12, window=4), lambda q, k: (abs(q - k) < 4 and k < 12) or (q >= 12 and k <= q)),
]


@pytest.mark.parametrize(("pattern", "says"), DEFINITIONS, ids=[str(pattern) for pattern, _ in DEFINITIONS])
@pytest.mark.parametrize("sizes", [(30, 30), (7, 30), (30, 7), (1, 1), (0, 4), (4, 0)], ids=str)
def test_a_pattern_is_its_definition(
    pattern: Pattern, says: Callable[[int, int], bool], sizes: tuple[int, int]
) -> None:
    check_meaning(pattern, says, *sizes)


def test_a_causal_window_is_exactly_its_size() -> None:
    seen = (Causal() & Window(128)).dense_mask(1, 1000)
    assert np.flatnonzero(seen[0]).tolist() == list(range(872, 1000))


def test_per_head_gives_each_head_its_own() -> None:
    pattern = PerHead([(Causal(), 2), (Sinks(1), 1)])
    mask = pattern.dense_mask(5, 9)
    assert mask.shape == (3, 5, 9)
    for head, own in enumerate((Causal(), Causal(), Sinks(1))):
        assert pattern.for_head(head) == own
        assert np.array_equal(mask[head], own.dense_mask(5, 9))


@pytest.mark.parametrize("join", [lambda a, b: a & b, lambda a, b: a | b, lambda a, b: ~(a | b).T])
def test_operators_reach_into_every_head(join: Callable[[Pattern, Pattern], Pattern]) -> None:
    first, second = PerHead([(Window(3), 1), (Sinks(2), 3)]), PerHead([(Causal(), 3), (Strided(2), 1)])
    joined = join(first, second)
    assert joined.head_cuts == (0, 1, 3, 4)
    for head in range(4):
        alone = join(first.for_head(head), second.for_head(head))
        assert np.array_equal(joined.dense_mask(9)[head], alone.dense_mask(9))


def test_the_document_s_pattern() -> None:
    mask = presets.local_global(2, 1, window=3, every=4).dense_mask(9)
    assert np.array_equal(mask[0], (Causal() & Window(3)).dense_mask(9))
    assert np.array_equal(mask[1], mask[0])
    assert np.array_equal(mask[2], (Causal() & Strided(4)).dense_mask(9))


def test_bigbird_is_a_window_two_blocks_and_random_blocks() -> None:
    mask = presets.bigbird(block=4, random=1, seed=0).dense_mask(64)
    rows = mask.sum(1)
    assert not np.triu(mask, 1).any()
    assert mask[:, :8][np.tril(np.ones((64, 8), bool))].all()
    assert (np.diag(mask, -7)).all()
    assert set(rows[24:].tolist()) <= {
        16,
        17,
        18,
        19,
        20,
    }  # a window of 8, 8 sinks, at most a block of 4 besides


def test_every_pattern_is_swept() -> None:
    """A pattern that is missing in the tests' list would not be tested at all."""
    exported = {x for x in vars(patterns).values() if isinstance(x, type) and issubclass(x, Pattern)}
    swept = {type(part) for pattern in PATTERNS.values() for part in _parts(pattern)}
    assert exported - {Pattern} <= swept


def _parts(pattern: Pattern) -> list[Pattern]:
    return [pattern, *(leaf for part in pattern.parts for leaf in _parts(part))]
