"""Text to tokens in units, by this process or by several: the same units and the same tokens, in the same order."""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np

from ..tokenizer import Tokenizer, load_tokenizer
from .shards import DTYPES
from .sources import Piece, Place

UNIT = 2**22  # characters: about a second of one core's work, and what a kill makes to be done again
WAITING = 2  # units that are read for each process: one in work, and the next at hand


class Unit(NamedTuple):
    """Text that one process makes tokens of at once.

    Attributes:
        pieces: (text, whether a document ends with it).
        place: Where the text behind it begins.
    """

    pieces: list[tuple[str, bool]]
    place: Place


def units(pieces: Iterable[Piece]) -> Iterator[Unit]:
    """The pieces in units of `UNIT` characters or a little more; the last is shorter."""
    held: list[tuple[str, bool]] = []
    characters, place = 0, None
    for piece in pieces:
        held.append((piece.text, piece.ends))
        characters += len(piece.text)
        if piece.place is None or characters < UNIT:
            place = piece.place
            continue
        yield Unit(held, piece.place())
        held, characters = [], 0
    if held and place is not None:
        yield Unit(held, place())


def tokenised(
    some: Iterable[Unit], tokenizer: Tokenizer, folder: Path, *, dtype: str, workers: int
) -> Iterator[tuple[bytes, Place]]:
    """(tokens as they lie in a shard, where the text behind them begins) of each unit, in order.

    Args:
        folder: Where `tokenizer` is saved, for other processes to load it.
        workers: How many processes; 1 is this one, which spreads the pieces of a unit over threads.

    Raises:
        RuntimeError: A process was ended from outside.
    """
    if workers == 1:
        for unit in some:
            yield (
                _row(tokenizer.encode_batch([text for text, _ in unit.pieces]), unit.pieces, tokenizer, dtype),
                unit.place,
            )
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(str(folder), dtype))
    try:
        yield from _by_others(some, pool, workers)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that makes tokens was ended from outside, for want of memory perhaps; what is done is kept: "
            "prepare again, with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _by_others(some: Iterable[Unit], pool: ProcessPoolExecutor, workers: int) -> Iterator[tuple[bytes, Place]]:
    waiting: deque[tuple[Future[bytes], Place]] = deque()
    for unit in some:
        waiting.append((pool.submit(_tokens_of, unit.pieces), unit.place))
        if len(waiting) == WAITING * workers:
            tokens, place = waiting.popleft()
            yield tokens.result(), place
    for tokens, place in waiting:
        yield tokens.result(), place


class _Own:
    """What a process of `tokenised` keeps from unit to unit."""

    tokenizer: Tokenizer
    dtype: str


def _begin(folder: str, dtype: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    Thread(target=_end_with_the_parent, daemon=True).start()
    _Own.tokenizer, _Own.dtype = load_tokenizer(folder), dtype


def _end_with_the_parent() -> None:
    """A killed parent closes no queue: its children would wait for ever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _tokens_of(pieces: Sequence[tuple[str, bool]]) -> bytes:
    # Piece by piece: another process makes use of each other core.
    rows = [_Own.tokenizer.encode_batch([text])[0] for text, _ in pieces]
    return _row(rows, pieces, _Own.tokenizer, _Own.dtype)


def _row(rows: Sequence[list[int]], pieces: Sequence[tuple[str, bool]], tokenizer: Tokenizer, dtype: str) -> bytes:
    ended = (row + [tokenizer.end_of_text] * ends for row, (_, ends) in zip(rows, pieces, strict=True))
    return np.fromiter(chain.from_iterable(ended), DTYPES[dtype]).tobytes()
