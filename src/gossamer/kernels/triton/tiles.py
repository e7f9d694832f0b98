"""What forward and backward kernels do alike: find their tile, load rows, mask and scale scores, drop pairs."""

import triton
import triton.language as tl


@triton.jit
def place(count, heads, repeats, SIZE: tl.constexpr):
    """(tile, batch, head) of this program: heads that share keys side by side, then tiles, the last one first."""
    number = tl.program_id(0)
    tiles = tl.cdiv(count, SIZE)
    repeat = number % repeats
    tile = tiles - 1 - number // repeats % tiles
    lane = number // repeats // tiles
    lanes = heads // repeats
    return tile, lane // lanes, lane % lanes * repeats + repeat


@triton.jit
def looked_up(order, place, exists):
    """The index at each place of an order."""
    if order is None:
        return place
    else:
        return tl.load(order + place, mask=exists, other=0).to(tl.int32)


@triton.jit
def met_by(run, tile, batch, place, count, SIZE: tl.constexpr):
    """(start, length) of each place's run, and (from, to, from, to) of what some place of the tile meets and of what
    every place meets."""
    starts, stops = run.start + batch * run.apart, run.stop + batch * run.apart
    start, stop = tl.load(starts + place), tl.load(stops + place)
    first, last = tile * SIZE, tl.minimum(tile * SIZE + SIZE, count) - 1
    bounds = tl.load(starts + first), tl.load(stops + last), tl.load(starts + last), tl.load(stops + first)
    return start, stop - start, bounds


@triton.jit
def is_cut(first, bounds, SIZE: tl.constexpr):
    """Whether some place of the tile does not meet all of `first … first + SIZE - 1`."""
    return (first < bounds[2]) | (first + SIZE > bounds[3])


@triton.jit
def inside(place, start, length):
    """start <= place < start + length, in one comparison."""
    return (place - start).to(tl.uint32, bitcast=True) < length.to(tl.uint32, bitcast=True)


@triton.jit
def bent(product, scores):
    """The product in the score's unit, or its tanh under a softcap."""
    if scores.cap is None:
        return product * scores.unit
    else:
        return tanh(product * scores.unit)


@triton.jit
def capped(bent, scores):
    """Scores in units of log 2."""
    if scores.cap is None:
        return bent
    else:
        return bent * scores.cap


@triton.jit
def tanh(x):
    """A series near zero, where 1 - 2 / (exp(2x) + 1) would cancel."""
    square = x * x
    series = 62.0 / 2835.0 - square * (1382.0 / 155925.0)
    series = 2.0 / 15.0 + square * (square * series - 17.0 / 315.0)
    series = x + x * square * (square * series - 1.0 / 3.0)
    return tl.where(square < 0.1, series, 1.0 - 2.0 / (tl.exp2(x * 2.8853900817779268) + 1.0))


@triton.jit
def mixed(bits):
    """32 well-mixed bits of 32 (the finaliser of MurmurHash3)."""
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def drawn_for(dropout, batch, head, query):
    """The state of the hash after stream and query, for each query of a head."""
    seed = tl.load(dropout.seed)
    stream = (batch * dropout.heads + dropout.first + head).to(tl.uint32)
    state = mixed(stream * 0x9E3779B1 ^ seed.to(tl.uint32))
    state = mixed(state ^ (seed >> 32).to(tl.uint32))
    return mixed(state + (query + dropout.offset).to(tl.uint32) * 0x85EBCA77)


@triton.jit
def kept(dropout, drawn, key):
    """What the probabilities of pairs are multiplied with: `factor`, or 0 where the pair is dropped."""
    bits = mixed(drawn + key.to(tl.uint32) * 0xC2B2AE3D)
    return tl.where(bits >= dropout.threshold.to(tl.uint32), dropout.factor, 0.0)
