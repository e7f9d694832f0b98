"""Which query heads follow one pattern and share whole key heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    >>> [(run.queries, run.keys) for run in runs]
    [(slice(0, 2, None), slice(0, 1, None)), (slice(2, 3, None), slice(1, 2, None)), (slice(3, 4, None), slice(1, 2, None)), (slice(4, 8, None), slice(2, 4, None))]
    """
    each = heads // key_heads
    for first, last, shared in pattern.groups(heads):
        whole = -(-first // each) * each, last // each * each
        cuts = [first, *whole, last] if whole[0] < whole[1] else [first, min(whole[0], last), last]
        for start, stop in zip(cuts, cuts[1:], strict=False):
            if start < stop:
                yield Heads(slice(start, stop), slice(start // each, -(-stop // each)), shared)
