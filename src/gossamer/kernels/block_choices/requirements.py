"""Which selections of blocks the kernels of this folder take, on whichever GPU."""

from __future__ import annotations

import torch

from ..indexed import Inputs
from .configs import chosen_config

SIZES = 16, 32, 64
"""Keys of a block."""
WIDEST = 256
FEWEST_QUERIES = 256
"""Fewer are done sooner by one kernel that reads each query's blocks than by the many that make and use lists."""
MOST_ENTRIES = 2**31 - 1
"""Pieces of a key head, and what queries and blocks meet in, are numbered with 32 bits."""
MOST_WORDS = 2**28
"""Words of four bytes, in each of which a tile of queries meets a block: a gigabyte."""
ALIGNED = 64
"""Queries that runs of them are multiples of, or else kernels would be compiled anew for lengths that are none."""
MOST_CHOSEN = 64
"""Blocks of a query: each is compared with each."""


def unfit(given: Inputs) -> str | None:
    """The first thing that these kernels do not do."""
    (batch, heads, queries, width), (_, key_heads, keys, _) = given.q.shape, given.k.shape
    selection, chosen = given.selection, given.selection.indices.shape[3]
    size, repeats = selection.block_size, 1 << (heads // max(1, key_heads) - 1).bit_length()
    if size not in SIZES:
        return f"blocks of {size} keys are chosen; it takes blocks of {', '.join(map(str, SIZES))}"
    if 0 in (given.q.numel(), given.k.numel(), chosen):
        return "there is nothing to compute"
    if queries < FEWEST_QUERIES:
        return f"there are {queries} queries; it takes {FEWEST_QUERIES} or more"
    if given.v is None:
        return "it takes keys and values apart"
    if given.extra is not None:
        return given.extra
    if given.q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"inputs are {given.q.dtype}; it computes float32, bfloat16 and float16"
    if max(width, given.value_width) > WIDEST:
        return f"heads are {width} and {given.value_width} wide; it computes {WIDEST} at most"
    config = chosen_config(given.q.dtype, max(width, given.value_width))
    most = min(config.rows, config.pieces["ROWS"], config.backward["ROWS"])
    if repeats > most:
        return f"{heads // key_heads} query heads share a key head; it takes {most} at most"
    if chosen > MOST_CHOSEN:
        return f"{chosen} blocks a query are chosen; it takes {MOST_CHOSEN} at most"
    if queries * chosen * repeats * 2 > MOST_ENTRIES:
        return f"{queries} queries choose {chosen} blocks each for {repeats} heads; more than it can number"
    if selection.causal and keys < queries and queries > queries_at_once(given):
        return f"there are {queries} queries and {keys} keys; of so many queries it takes no more than there are keys"
    tiles = -(-queries // config.together(repeats))
    if batch * selection.indices.shape[1] * tiles * -(-keys // size) > MOST_WORDS:
        return f"{queries} queries by {keys} keys; a table of tiles by blocks takes more than a gigabyte"
    return None


def queries_at_once(given: Inputs) -> int:
    """Queries whose pieces the scratch holds, of one key head."""
    width = max(given.q.shape[3], given.value_width)
    repeats, chosen = given.q.shape[1] // given.k.shape[1], given.selection.indices.shape[3]
    most = chosen_config(given.q.dtype, width).scratch // (chosen * repeats * width * given.q.element_size())
    return most // ALIGNED * ALIGNED or max(1, most)
