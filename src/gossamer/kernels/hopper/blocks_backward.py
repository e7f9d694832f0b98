"""The backward pass over tables of blocks, with nothing added up in memory: the same bits every time.

One kernel owns queries and finishes their gradient by the table of the queries' side, one owns keys and finishes
theirs by the table of the keys' side. What either is told of the rest is as `blocks_forward` says.
"""

from __future__ import annotations

from torch import Tensor
from triton import reinterpret
from triton.experimental.gluon import language as gl

from ..block_tables import BlockTable
from .bands import rows
from .blocks import arguments_of, slots_of
from .blocks_backward_keys import keys_kernel
from .blocks_backward_queries import queries_kernel
from .blocks_forward import query_work
from .configs import ROWS, BlocksConfig, blocks_team, tile_width
from .descriptors import tiles
from .division import divisor
from .launch import Launch, Operands, heads_cached, launch
from .operands import Inputs, Results
from .ring import AUX
from .sweep import work_of


def backward_queries(
    inputs: Inputs, results: Results, by_queries: BlockTable, dq: Tensor, aux: Tensor,
    *, scale: float, within: Tensor | None, copies: bool = False,
) -> None:  # fmt: skip
    """Writes dq and, for `backward_keys`, aux (bfloat16 [B, H, Q, 16], dense), given what the forward gave."""
    given = results.out, results.grad_out, dq, aux, results.lse, results.grad_lse, within
    settings = by_queries.size, scale, copies and within is not None
    launch(_prepared_queries, (*inputs, *given, *by_queries[1:]), *settings)


def _prepared_queries(operands: Operands, size: int, scale: float, copies: bool) -> Launch:
    q, k, v, out, grad_out, dq, aux, lse, grad_lse, within, *rest = operands
    table = BlockTable(size, *rest)
    heads, repeats = q.shape[1], q.shape[1] // k.shape[1]
    wide, value_wide = tile_width(q.shape[3]), tile_width(v.shape[3])
    team, streams, work = query_work(q, k, v, table)
    own = tiles(q, size, wide), tiles(grad_out, size, value_wide), tiles(out, size, value_wide), tiles(dq, ROWS, wide)
    arguments = (
        *(*own, reinterpret(aux, gl.int32), tiles(k, size, wide), tiles(v, size, value_wide)),
        *arguments_of(table, heads),
        *(within, *rows(lse), *rows(grad_lse), scale, *divisor(heads), *divisor(repeats), q.shape[2], k.shape[2]),
        *work,
    )
    slots = slots_of(team.consumers * wide, wide + value_wide, streams, size // ROWS)
    config = BlocksConfig(team, streams, size, slots, copies=copies)
    return Launch(queries_kernel, -(-work[0] // streams), arguments, (config,), config.consumers)


def backward_keys(
    inputs: Inputs, grad_out: Tensor, aux: Tensor, by_keys: BlockTable, gradients: tuple[Tensor, Tensor],
    *, scale: float, within: Tensor | None,
) -> None:  # fmt: skip
    """Writes the gradients of keys and values."""
    launch(_prepared_keys, (*inputs, grad_out, aux, *gradients, within, *by_keys[1:]), by_keys.size, scale)


def _prepared_keys(operands: Operands, size: int, scale: float) -> Launch:
    q, k, v, grad_out, aux, dk, dv, within, *rest = operands
    table = BlockTable(size, *rest)
    batch, key_heads, keys, width = k.shape
    heads, queries = q.shape[1:3]
    repeats = heads // key_heads
    wide, value_wide = tile_width(width), tile_width(v.shape[3])
    team, streams = blocks_team(size, wide, value_wide)
    staged = streams == 1
    depth = 2 if staged and max(wide, value_wide) == ROWS else 1  # narrow tiles leave room for the next item's own
    own = team.consumers * depth * (wide + value_wide) + 2 * AUX.value
    own += staged * team.consumers * (wide if wide == value_wide else wide + value_wide)
    work = work_of(batch * key_heads, table.order.shape[1], max(1, heads_cached(q, grad_out, aux) // repeats))
    sources = (k, wide), (v, value_wide), (q, wide), (grad_out, value_wide), (aux, AUX.value), (dk, wide)
    arguments = (
        *(tiles(x, ROWS, x_wide) for x, x_wide in (*sources, (dv, value_wide))),
        *(*arguments_of(table, heads), within, scale, *divisor(key_heads), repeats, queries, keys, *work),
    )
    slots = slots_of(own, wide + value_wide + AUX.value, streams)
    config = BlocksConfig(team, streams, size, slots, team.consumers * depth)
    return Launch(keys_kernel, -(-work[0] // streams), arguments, (config,), config.consumers)
