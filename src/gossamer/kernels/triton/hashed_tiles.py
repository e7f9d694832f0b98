"""What the kernels of hashed attention do alike: find chunks and their neighbours, and score pairs of sorted tokens."""

import triton
import triton.language as tl

from .tiles import inside

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)  # a product, because ALONE comes back from it exactly, and not from a quotient
ALONE = tl.constexpr(-144269.5)  # `hashed.ALONE` in units of log 2, to the float32 that it is


@triton.jit
def located(sorted, heads, SIZE: tl.constexpr, TILE: tl.constexpr):
    """(chunk, places in it, batch, head) of this program: neighbouring programs have neighbouring chunks."""
    number = tl.program_id(0)
    parts = tl.cdiv(SIZE, TILE)
    tiles = sorted.chunks * parts
    lane, tile = number // tiles, number % tiles
    return tile // parts, tile % parts * TILE + tl.arange(0, TILE), lane // heads, lane % heads


@triton.jit
def beside(sorted, turn, chunk, EDGE: tl.constexpr):
    """(round, chunk, exists) of a chunk that may lie beyond the edge of its round."""
    count = sorted.chunks
    if EDGE == "stops":
        return turn, tl.minimum(tl.maximum(chunk, 0), count - 1), (chunk >= 0) & (chunk < count)
    elif EDGE == "wraps":
        chunk = (chunk % count + count) % count
        return turn, chunk, chunk >= 0
    else:
        ring = count * sorted.rounds
        place = ((turn * count + chunk) % ring + ring) % ring
        return place // count, place % count, place >= 0


@triton.jit
def tokens(sorted, lane, turn, chunk, offset, SIZE: tl.constexpr):
    """(token, place, exists) at each offset of a chunk; the token 0 where the place does not exist."""
    place = chunk * SIZE + offset
    exists = (offset < SIZE) & (place < sorted.length)
    row = (lane.to(tl.int64) * sorted.rounds + turn) * sorted.length
    return tl.load(sorted.order + row + place, mask=exists, other=0), place, exists


@triton.jit
def existing(sorted, batch):
    """How many tokens of a sequence exist: those sorted first."""
    if sorted.count is None:
        return sorted.length
    else:
        return tl.load(sorted.count + batch)


@triton.jit
def cells(sorted, lane, token):
    """Where a token's numbers for each round start, in `place`, `start` and `stop`."""
    return (lane.to(tl.int64) * sorted.length + token) * sorted.rounds


@triton.jit
def judged(product, sorted, lane, turn, theirs, query, key, place, visible, CAUSAL: tl.constexpr, ROUNDS: tl.constexpr):
    """Scores in units of log 2, minus infinity for pairs that do not see each other.

    `query` and `key` are the tokens and `place` that of the key, each a column or a row, whichever way the tile lies;
    they are met in the rounds `turn` and `theirs`.
    """
    itself = query == key
    visible = visible & ((turn + theirs == 0) | (query != key))  # itself is met in the first round alone
    if CAUSAL:
        visible = visible & (key <= query)
    if sorted.start is not None:
        of_query = cells(sorted, lane, query)
        start = tl.load(sorted.start + of_query + turn)
        visible = visible & inside(place, start, tl.load(sorted.stop + of_query + turn) - start)
        if sorted.place is not None:
            of_key = cells(sorted, lane, key)
            times = tl.zeros(product.shape, tl.int32)
            for other in tl.static_range(ROUNDS):
                start = tl.load(sorted.start + of_query + other)
                length = tl.load(sorted.stop + of_query + other) - start
                times += inside(tl.load(sorted.place + of_key + other), start, length).to(tl.int32)
            product -= tl.log2(tl.maximum(times, 1).to(tl.float32))
    return tl.where(visible, tl.where(itself, ALONE, product), float("-inf"))
