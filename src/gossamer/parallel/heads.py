"""Which query heads follow one pattern and share whole key heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..patterns.base import Pattern


@dataclass(frozen=True, eq=False)
class Heads:
    """Neighbouring query heads of one pattern, and the key heads that serve them and no others of these."""

    queries: slice
    keys: slice
    pattern: Pattern


def heads_of(pattern: Pattern, heads: int, key_heads: int) -> Iterator[Heads]:
    """The heads in runs that share a pattern; a run that ends within a key head's queries is cut there.

    >>> from gossamer import Causal, PerHead, Window
    >>> runs = heads_of(PerHead([(Causal(), 3), (Causal() & Window(4), 5)]), heads=8, key_heads=4)
    >>> [(run.queries.start, run.queries.stop, run.keys.start, run.keys.stop) for run in runs]
    [(0, 2, 0, 1), (2, 3, 1, 2), (3, 4, 1, 2), (4, 8, 2, 4)]
    """
    each = heads // key_heads
    for first, last, shared in pattern.groups(heads):
        whole = -(-first // each) * each, last // each * each
        cuts = [first, *whole, last] if whole[0] < whole[1] else [first, min(whole[0], last), last]
        for start, stop in pairwise(cuts):
            if start < stop:
                yield Heads(slice(start, stop), slice(start // each, -(-stop // each)), shared)
