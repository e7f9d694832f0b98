"""Exact counts at lengths where nothing n×n would fit."""

import tracemalloc
from collections.abc import Callable

import pytest

from gossamer.patterns import Blocks, Causal, Documents, Pattern, RandomBlocks, Sinks, Strided, Tokens, Window


def triangle(n: int) -> int:
    return n * (n + 1) // 2


def random_blocks(length: int) -> int:
    """Rows 0, 1 and 2 have fewer than three blocks before them."""
    return 64 * 64 * (0 + 1 + 2 + 3 * (length // 64 - 3))


COUNTS: list[tuple[Pattern, Callable[[int], int]]] = [
    (Causal(), triangle),
    (Causal().T, triangle),
    (Window(100), lambda n: n * 199 - 2 * triangle(99)),
    (Strided(10), lambda n: n * -(-n // 10)),
    (Causal() & Strided(7), lambda n: sum(n - k for k in range(0, n, 7))),
    (Sinks(3) | Tokens([9, 500]).T, lambda n: 3 * n + 2 * n - 3 * 2),
    (Documents([1000, 24]), lambda n: 1000**2 + 24**2),
    (RandomBlocks(64, 3, seed=1), random_blocks),
    (Causal() & RandomBlocks(64, 3, seed=1), random_blocks),
    (RandomBlocks(64, 3, seed=1) | Window(1), lambda n: random_blocks(n) + n),
    (Blocks(2**16, ["10", "11"]), lambda n: 3 * 2**32),
    (Causal() & Blocks(2**16, ["10", "11"]), lambda n: 2 * triangle(2**16) + 2**32),
    (~Causal() & RandomBlocks(64, 3, seed=1), lambda n: 0),
]


@pytest.mark.parametrize(("pattern", "pairs"), COUNTS, ids=[str(pattern) for pattern, _ in COUNTS])
def test_density_is_exact_and_small(pattern: Pattern, pairs: Callable[[int], int]) -> None:
    """2^17 tokens: a bit for each pair would be 2 GiB."""
    length = 2**17
    tracemalloc.start()
    density = pattern.density(length)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert density * length**2 == pairs(length)
    assert peak < 100 * 2**20, f"{peak:,} bytes"
