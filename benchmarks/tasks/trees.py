"""ListOps (Nangia and Bowman 2018) as the Long Range Arena has it (arXiv 2011.04006), drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import get_context
from statistics import median

DIGITS = tuple("0123456789")
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
CLOSE = "]"
SYMBOLS = (*DIGITS, *OPERATORS, CLOSE)
"""What a text is made of; a token is a place in it. Brackets count: without them the value cannot be known."""

_MEANING = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(median(values)),  # between the two in the middle, rounded down
    "[SM": lambda values: sum(values) % 10,
}
CHUNK = 256
"""Examples that are drawn from one generator of random numbers."""

Example = tuple[bytes, int]
"""Tokens, one a byte, and their value."""


@dataclass(frozen=True)
class Shape:
    """What trees are drawn, and which of them are kept; the defaults are the Long Range Arena's.

    >>> tokens, value = next(examples(Shape(shortest=5, longest=9), seed=0, processes=1))
    >>> written(tokens), value
    ('[MAX 2 9 3 0 ]', 9)
    """

    depth: int = 10
    """Levels of a tree, the root being the first; on the last one stand digits alone."""
    most_arguments: int = 10
    """An operator has 2 to so many."""
    branching: float = 0.25
    """Chance that a node above the last level is an operator."""
    shortest: int = 501
    """Tokens of the shortest text that is kept: an operator and its bracket are two."""
    longest: int = 1999
    """Tokens of the longest one."""

    def __post_init__(self) -> None:
        for name, least in (("depth", 1), ("most_arguments", 2), ("shortest", 1), ("longest", self.shortest)):
            if getattr(self, name) < least:
                raise ValueError(f"Shape: {name} is {getattr(self, name)}; give at least {least}")
        if not 0 < self.branching < 1:
            raise ValueError(f"Shape: branching is {self.branching}; give a chance between 0 and 1")


def examples(shape: Shape, seed: int, *, processes: int = 1) -> Iterator[Example]:
    """Examples without end, no text twice: the same ones for a seed, however many processes draw them."""
    seen = set()
    for tokens, value in _drawn(shape, seed, processes):
        if tokens not in seen:
            seen.add(tokens)
            yield tokens, value


def written(tokens: Sequence[int]) -> str:
    """The text of some tokens."""
    return " ".join(SYMBOLS[token] for token in tokens)


def read(text: str) -> bytes:
    """The tokens of a text: `read(written(tokens)) == tokens`."""
    return bytes(SYMBOLS.index(symbol) for symbol in text.split())


class _TooLong(Exception):
    pass


def _drawn(shape: Shape, seed: int, processes: int) -> Iterator[Example]:
    if processes == 1:
        for chunk in count():
            yield from _chunk(shape, seed, chunk)
    # Started anew, not forked: this process has threads.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        chunks = count()
        waiting = [pool.submit(_chunk, shape, seed, chunk) for chunk in islice(chunks, 2 * processes)]
        try:
            while True:
                done = waiting.pop(0).result()
                waiting.append(pool.submit(_chunk, shape, seed, next(chunks)))
                yield from done
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _chunk(shape: Shape, seed: int, chunk: int) -> list[Example]:
    """The examples of one generator of random numbers."""
    draws, kept = random.Random(f"listops {seed} {chunk}"), []
    while len(kept) < CHUNK:
        tokens = bytearray()
        try:
            value = _grow(draws, shape, shape.depth, tokens)
        except _TooLong:
            continue
        if len(tokens) >= shape.shortest:
            kept.append((bytes(tokens), value))
    return kept


def _grow(draws: random.Random, shape: Shape, levels: int, tokens: bytearray) -> int:
    """Write a tree of at most so many levels behind `tokens`, and say what it is worth."""
    if len(tokens) >= shape.longest:
        raise _TooLong
    if levels == 1 or draws.random() >= shape.branching:
        digit = draws.randrange(10)
        tokens.append(digit)
        return digit
    operator = draws.choice(OPERATORS)
    tokens.append(SYMBOLS.index(operator))
    values = [_grow(draws, shape, levels - 1, tokens) for _ in range(draws.randint(2, shape.most_arguments))]
    tokens.append(SYMBOLS.index(CLOSE))
    if len(tokens) > shape.longest:
        raise _TooLong
    return _MEANING[operator](values)
