"""Decoding: a few new queries of each sequence against its cache, in time that does not know the cache's length.

The keys that a query sees are written down nowhere: their runs follow from its position. The runs laid end to end are
cut into equal splits, a program each; a second kernel merges the splits by their log-sum-exp. All query heads of a
key head share one tile, so that each key and value is read once. Lengths are known to the device alone and shapes
decide the number of programs, so a CUDA graph can hold it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...plan import Plan
from ..captured import kept
from ..devices import capability
from ..problem import Softmax
from .decode_table import Header, Run, at_capacity, padded, programs, tile_of

FIRST_HEAD, HEADS, KEY_HEAD, SPLIT, ITS_SPLITS = map(tl.constexpr, range(len(Header._fields)))
LOW, HIGH, STEP, FIRST, LAST, LISTED, RANKS, REACH, MODULUS, ON_STEP = map(tl.constexpr, range(len(Run._fields)))
HEADER, FIELDS = tl.constexpr(len(Header._fields)), tl.constexpr(len(Run._fields))
NOT_YET = tl.constexpr(-1e38)
"""The largest score before any was seen: finite, so that no difference of two is NaN."""
LOG2E = tl.constexpr(1.4426950408889634)


def decode(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """(out [B, H, Q, Dv] in the input's dtype, natural log-sum-exp [B, H, Q] in float32)."""
    batch, heads, queries, width = q.shape
    keys, value_width = k.shape[2], v.shape[3]
    out, lse = q.new_empty(*q.shape[:3], value_width), q.new_empty(q.shape[:3], dtype=torch.float32)
    if not lse.numel():
        return out, lse
    tile = tile_of(width, value_width, q.element_size())
    work = kept(programs(at_capacity(plan), q.device, batch, heads // k.shape[1], queries, tile), q.device)
    splits, partial, partial_lse = work.splits, out, lse
    if splits > 1:
        partial = lse.new_empty(batch, heads, queries, splits, value_width)
        partial_lse = lse.new_empty(batch, heads, queries, splits)
    overlap = _overlaps(q.device)
    launch = {"launch_pdl": True} if overlap else {}
    grid = batch, work.items.shape[0], triton.cdiv(queries, work.queries)
    _attend_split[grid](
        q, k, v, partial, partial_lse, sinks, softmax.lengths, work.items, work.lists,
        q.stride(), k.stride(), v.stride(), heads, queries, keys, width, value_width, splits,
        softmax.scale, softmax.softcap, softmax.softcap > 0, splits > 1, work.queries, work.rows,
        work.terms, work.has_lists, work.masked, tile.keys, tile.stages,
        padded(width), padded(value_width), overlap, num_warps=tile.warps, **launch,
    )  # fmt: skip
    if splits > 1:
        _merge_splits[(batch * heads * queries,)](
            partial, partial_lse, out, lse, sinks, work.head_splits, heads, queries, value_width, splits,
            triton.next_power_of_2(splits), padded(value_width), overlap, num_warps=4, **launch,
        )  # fmt: skip
    return out, lse


def _overlaps(device: torch.device) -> bool:
    """Whether a kernel may be launched while the one before still runs, and wait for it on the device."""
    return (capability(device) or (0, 0)) >= (9, 0)


@triton.jit
def _run(term, lists, lowest, highest, length, HAS_LISTS: tl.constexpr):
    """(count, first key, step, place in the lists or -1) of the keys that queries lowest … highest see together."""
    low, high, step = tl.load(term + LOW), tl.load(term + HIGH), tl.load(term + STEP)
    first, last = tl.load(term + FIRST), tl.load(term + LAST)
    begin = tl.maximum(lowest - high, 0)
    end = tl.minimum(tl.minimum(highest - low, length - 1), last)
    if HAS_LISTS:
        reach = tl.load(term + REACH)
        begin = tl.maximum(begin, tl.load(lists + reach + 2 * lowest, mask=reach >= 0, other=0))
        end = tl.minimum(end, tl.load(lists + reach + 2 * lowest + 1, mask=reach >= 0, other=last))
    own = begin + ((lowest - begin) % step + step) % step
    key = tl.where(first < 0, own, first + (tl.maximum(begin - first, 0) + step - 1) // step * step)
    count = tl.where(key <= end, (end - key) // step + 1, 0)
    place = -1
    if HAS_LISTS:
        place = tl.load(term + LISTED)
        ranks, listed = tl.load(term + RANKS), (place >= 0) & (begin <= end)
        rank = tl.load(lists + ranks + begin, mask=listed, other=0)
        listed_count = tl.load(lists + ranks + end + 1, mask=listed, other=0) - rank
        count = tl.where(place >= 0, listed_count, count)
        place = tl.where(place >= 0, place + rank, -1)
    return count, key, step, place


@triton.jit
def _keys_at(n, runs, lists, inside, TERMS: tl.constexpr, HAS_LISTS: tl.constexpr):
    """The keys at places `n` of the runs laid end to end."""
    key, place = runs[0][1] + n * runs[0][2], n + runs[0][3]
    listed = (n >= 0) & (runs[0][3] >= 0)
    for t in tl.static_range(1, TERMS):
        here = n >= runs[t][0]
        key = tl.where(here, runs[t][1] + (n - runs[t][0]) * runs[t][2], key)
        place = tl.where(here, n - runs[t][0] + runs[t][3], place)
        listed = tl.where(here, runs[t][3] >= 0, listed)
    if HAS_LISTS:
        key = tl.where(listed, tl.load(lists + place, mask=listed & inside, other=0), key)
    return key


@triton.jit
def _visible(n, key, position, runs, terms, TERMS: tl.constexpr):
    """[rows, keys] whether the distance of row and key is one that the key's term allows."""
    distance = position[:, None] - key[None, :]
    seen = (distance < 0) & (distance > 0)
    for t in tl.static_range(TERMS):
        term = terms + t * FIELDS
        low, high = tl.load(term + LOW), tl.load(term + HIGH)
        modulus, on_step = tl.load(term + MODULUS), tl.load(term + ON_STEP)
        allowed = (distance >= low) & (distance <= high) & ((distance % modulus == 0) == (on_step != 0))
        seen = tl.where((n >= runs[t][0])[None, :], allowed, seen)
    return seen & (position >= 0)[:, None]


@triton.jit
def _scores(q, k, scale, softcap, SOFTCAP: tl.constexpr):
    """Scores in units of log 2."""
    scores = tl.dot(q, k, input_precision="ieee")
    if SOFTCAP:
        grown = tl.exp2(scores * (2 * LOG2E * scale / softcap))
        return (1 - 2 / (1 + grown)) * (softcap * LOG2E)  # tanh, right at both infinities
    return scores * (scale * LOG2E)


@triton.jit
def _with_sink(peak, total, sink):
    """(peak, total, factor of the output so far) with a sink among the keys."""
    sink = sink.to(tl.float32) * LOG2E
    higher = tl.maximum(peak, sink)
    factor = tl.exp2(peak - higher)
    return higher, total * factor + tl.exp2(sink - higher), factor


@triton.jit(do_not_specialize=["heads", "queries", "keys", "splits"])
def _attend_split(
    q, k, v, out, lse, sinks, lengths, items, lists,
    q_strides, k_strides, v_strides, heads, queries, keys, width, value_width, splits,
    scale, softcap, SOFTCAP: tl.constexpr, PARTIAL: tl.constexpr, TOGETHER: tl.constexpr, ROWS: tl.constexpr,
    TERMS: tl.constexpr, HAS_LISTS: tl.constexpr, MASKED: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One split of the keys that some query heads of a key head see: its output and log-sum-exp in units of log 2,
    or where there is one split alone, the results."""
    item = items + tl.program_id(1) * (HEADER + TERMS * FIELDS)
    terms = item + HEADER
    batch = tl.program_id(0).to(tl.int64)
    key_head = tl.load(item + KEY_HEAD).to(tl.int64)
    split, item_splits = tl.load(item + SPLIT), tl.load(item + ITS_SPLITS)
    first_head, item_heads = tl.load(item + FIRST_HEAD), tl.load(item + HEADS)
    if OVERLAP:  # what stands above no kernel has written
        gdc_wait()
        gdc_launch_dependents()
    length = keys
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + batch), keys).to(tl.int32)

    row = tl.arange(0, ROWS)
    query = tl.program_id(2) * TOGETHER + row % TOGETHER
    exists = (row // TOGETHER < item_heads) & (query < queries)
    head = first_head + row // TOGETHER
    position = length - queries + query
    lowest = length - queries + tl.program_id(2) * TOGETHER
    highest = tl.minimum(lowest + TOGETHER, length) - 1
    lowest = tl.maximum(lowest, 0)

    total_keys = 0
    runs = ()
    for t in tl.static_range(TERMS):
        run = _run(terms + t * FIELDS, lists, lowest, highest, length, HAS_LISTS)
        runs += ((total_keys, run[1], run[2], run[3]),)
        total_keys += tl.where(highest >= 0, run[0], 0)
    share = tl.cdiv(tl.cdiv(total_keys, KEYS), item_splits) * KEYS
    begin = split * share
    end = tl.minimum(begin + share, total_keys)

    wide, value_wide = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH)
    rows = batch * q_strides[0] + head.to(tl.int64) * q_strides[1] + query.to(tl.int64) * q_strides[2]
    inside_q = exists[:, None] & (wide < width)[None, :]
    q_tile = tl.load(q + rows[:, None] + wide[None, :] * q_strides[3], mask=inside_q, other=0)
    k += batch * k_strides[0] + key_head * k_strides[1]
    v += batch * v_strides[0] + key_head * v_strides[1]

    peak = tl.full([ROWS], NOT_YET, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    for first in tl.range(begin, end, KEYS, num_stages=STAGES):
        n = first + tl.arange(0, KEYS)
        inside = n < end
        key = _keys_at(n, runs, lists, inside, TERMS, HAS_LISTS)
        at = key.to(tl.int64)
        k_mask, v_mask = inside[None, :] & (wide < width)[:, None], inside[:, None] & (value_wide < value_width)[None]
        k_tile = tl.load(k + at[None, :] * k_strides[2] + wide[:, None] * k_strides[3], mask=k_mask, other=0)
        v_tile = tl.load(v + at[:, None] * v_strides[2] + value_wide[None, :] * v_strides[3], mask=v_mask, other=0)
        seen = inside[None, :]
        if MASKED:
            seen = seen & _visible(n, key, position, runs, terms, TERMS)
        scores = tl.where(seen, _scores(q_tile, k_tile, scale, softcap, SOFTCAP), float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fading = tl.exp2(peak - higher)
        total = total * fading + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * fading[:, None], input_precision="ieee")
        peak = higher

    result = (batch * heads + head) * queries + query
    if PARTIAL:
        result = result * splits + split
    elif sinks is not None:
        peak, total, factor = _with_sink(peak, total, tl.load(sinks + head, mask=exists, other=0))
        acc *= factor[:, None]
    divisor = tl.where(total > 0, total, 1)
    made = acc / divisor[:, None]
    made_lse = tl.where(total > 0, peak + tl.log2(divisor), float("-inf"))
    if not PARTIAL:
        made_lse /= LOG2E
    tl.store(lse + result, made_lse, mask=exists)
    inside_out = exists[:, None] & (value_wide < value_width)[None, :]
    tl.store(out + result[:, None] * value_width + value_wide[None, :], made.to(out.dtype.element_ty), mask=inside_out)


@triton.jit(do_not_specialize=["heads", "queries", "splits"])
def _merge_splits(
    partial, partial_lse, out, lse, sinks, head_splits, heads, queries, value_width, splits,
    SPLITS: tl.constexpr, VALUE_WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One query of one head: its splits weighed by their log-sum-exps, and its sink."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    head = row // queries % heads
    number, wide = tl.arange(0, SPLITS), tl.arange(0, VALUE_WIDTH)
    split = row * splits + number
    inside = (number < splits)[:, None] & (wide < value_width)[None, :]
    parts = tl.load(partial + split[:, None] * value_width + wide[None, :], mask=inside, other=0)
    lses = tl.load(partial_lse + split, mask=number < splits, other=float("-inf"))
    written = number < tl.load(head_splits + head)  # asked last, so that no load waits for another
    lses, parts = tl.where(written, lses, float("-inf")), tl.where(written[:, None], parts, 0)
    peak = tl.maximum(tl.max(lses, 0), NOT_YET)
    weights = tl.exp2(lses - peak)
    total = tl.sum(weights, 0)
    made = tl.sum(weights[:, None] * parts, 0)
    if sinks is not None:
        peak, total, factor = _with_sink(peak, total, tl.load(sinks + head))
        made *= factor
    divisor = tl.where(total > 0, total, 1)
    tl.store(lse + row, tl.where(total > 0, peak + tl.log2(divisor), float("-inf")) / LOG2E)
    tl.store(out + row * value_width + wide, (made / divisor).to(out.dtype.element_ty), mask=wide < value_width)
