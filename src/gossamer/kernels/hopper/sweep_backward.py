"""The backward pass over runs of any length, with nothing added up in memory: the same bits every time.

One kernel owns queries and finishes their gradient, one owns keys and finishes theirs. Both are persistent: a warp
brings tiles of the other side through a ring in shared memory, and a team of warpgroups with 64 rows each shares every
tile.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from triton import reinterpret
from triton.experimental.gluon import language as gl

from .bands import rows
from .configs import ROWS, SHARED_MEMORY, SweepConfig, rows_seen, team_of, tile_width
from .descriptors import tiles
from .division import divisor
from .launch import Launch, Operands, heads_cached, launch
from .operands import SEGMENT_TENSORS, Asking, Diagonal, Results, SeenKeys, Segment, segments_of, tensors_of
from .ring import AUX
from .sweep import edges_of, query_work, runs_of, shares_of, work_of
from .sweep_backward_keys import keys_kernel
from .sweep_backward_queries import queries_kernel

MOST_SLOTS = 6
"""Tiles in the ring beyond which nothing is gained."""

RESERVED = 1024
"""Bytes of shared memory for barriers and for what the compiler adds."""


def backward_queries(
    q: Tensor,
    segments: Sequence[Segment],
    results: Results,
    dq: Tensor,
    aux: Tensor,
    *,
    scale: float,
    in_turn: bool = False,
) -> None:
    """Writes dq and, for `backward_keys`, aux (bfloat16 [B, H, Q, 16], dense): one softmax over one or two segments.

    `in_turn` is as in the forward: parts of dq take the place of dq.
    """
    given = results.out, results.grad_out, dq, aux, results.lse, results.grad_lse
    launch(_prepared_queries, (q, *given, *tensors_of(segments)), segments[0].diagonal, scale, in_turn)


def _prepared_queries(operands: Operands, diagonal: Diagonal | None, scale: float, in_turn: bool) -> Launch:
    q, out, grad_out, dq, aux, lse, grad_lse, *rest = operands
    segments = segments_of(rest, diagonal)
    _, heads, queries, width = q.shape
    repeats = heads // segments[0].k.shape[1]
    wide, value_wide = tile_width(width), tile_width(out.shape[-1])
    team = team_of(wide, value_wide, None if in_turn else repeats)
    own = 2 * team.consumers * (wide + value_wide)
    second = {"segments": len(segments)}
    if len(segments) == 2 and diagonal is not None:  # beside a table, no registers are left for another kind of tile
        second["second_rows"] = rows_seen(segments[1].k.shape[2])
    config = SweepConfig(team, _slots(own, wide + value_wide), in_turn=in_turn, **second)
    work = query_work(config, q, segments)
    sources = (q, wide), (grad_out, value_wide), (out, value_wide), (dq, wide)
    arguments = (
        *(tiles(x, ROWS, x_wide) for x, x_wide in sources),
        *(reinterpret(aux, gl.int32), *runs_of(segments, ROWS, wide, value_wide)),
        *(*rows(lse), *rows(grad_lse), scale, *divisor(heads), *divisor(repeats), queries),
        *work,
    )
    return Launch(queries_kernel, work[0], arguments, (config,), team.consumers)


def backward_keys(
    asking: Asking, keys: SeenKeys, dk: Tensor, dv: Tensor, *, scale: float, whole: Asking | None = None
) -> None:
    """Writes the gradients of keys and values; key j is seen by queries first[j] ... last[j] - 1, and all of `whole`,
    which are [B, G, n, …]: those of all heads of a key head together.

    dk and dv are like key and value, or float32 [parts, *key.shape] and [parts, *value.shape], dense: then the queries
    are cut into as many parts, the gradients are the sums over them, and nothing is seen as a whole.
    """
    operands = *asking, *keys[:SEGMENT_TENSORS], *(whole or (None,) * len(asking)), dk, dv
    launch(_prepared_keys, operands, keys.diagonal, scale)


def _prepared_keys(operands: Operands, diagonal: Diagonal | None, scale: float) -> Launch:
    q, grad_out, aux, key, value, first, last, q2, grad_out2, aux2, dk, dv = operands
    batch, key_heads, count, width = key.shape
    repeats = q.shape[1] // key_heads
    wide, value_wide = tile_width(width), tile_width(value.shape[-1])
    in_parts = dk.dim() == 5
    team = team_of(wide, value_wide)
    in_turn = in_parts and _in_turn(count)
    parts = dk.shape[0] // (team.consumers if in_turn else 1) if in_parts else 1
    matrices = batch * key_heads
    units, blocks = matrices * parts, _ceiling(count, ROWS if in_turn else team.rows)
    depth = 2 if max(wide, value_wide) == ROWS else 1  # narrow tiles leave room for the next item's keys and values
    own = team.consumers * depth * (wide + value_wide) + 2 * AUX.value
    if in_parts:
        totals = dk, dv, width, value.shape[-1]
    else:
        totals = tiles(dk, ROWS, wide), tiles(dv, ROWS, value_wide), None, None
        own += team.consumers * (wide if wide == value_wide else wide + value_wide)
    widths = wide, value_wide, AUX.value
    asking = zip((q, grad_out, aux, q2, grad_out2, aux2), 2 * widths, strict=True)
    # Parts are for few keys: there, even loads matter more than what the cache holds.
    cached = units if in_parts else max(1, heads_cached(q, grad_out, aux) // repeats)
    arguments = (
        *(tiles(key, ROWS, wide), tiles(value, ROWS, value_wide)),
        *(None if x is None else tiles(x, ROWS, x_wide) for x, x_wide in asking),
        *(*totals, *edges_of(first, last, diagonal, q.shape[2])),
        *(scale, *divisor(key_heads), repeats, count, *divisor(parts), matrices, 0 if q2 is None else q2.shape[2]),
        *work_of(units, blocks, cached),
    )
    second = {} if q2 is None else {"segments": 2, "second_rows": rows_seen(q2.shape[2])}
    config = SweepConfig(team, _slots(own, sum(widths)), depth=depth, in_turn=in_turn, **second)
    return Launch(keys_kernel, units * blocks, arguments, (config,), team.consumers)


def splits(key: Tensor, value: Tensor, q: Tensor) -> int:
    """Into how many parts `backward_keys` should cut the queries, so that few keys and many queries fill the GPU."""
    batch, key_heads, keys, _ = key.shape
    team = team_of(tile_width(key.shape[3]), tile_width(value.shape[3]))
    swept = _ceiling(q.shape[2], ROWS) * (q.shape[1] // key_heads)
    if _in_turn(keys):  # every consumer makes a part
        return team.consumers * shares_of(batch * key_heads, swept // team.consumers, key.device)
    return shares_of(batch * key_heads * _ceiling(keys, team.rows), swept, key.device)


def _in_turn(keys: int) -> bool:
    """Whether all of a team own the same keys: where there is but one tile of them."""
    return keys <= ROWS


def _slots(own: int, ring: int) -> int:
    """Tiles of `ring` columns in all that fit into shared memory beside tiles of `own` columns in all."""
    return min(MOST_SLOTS, ((SHARED_MEMORY - RESERVED) // (2 * ROWS) - own) // ring)


def _ceiling(a: int, b: int) -> int:
    return -(-a // b)
