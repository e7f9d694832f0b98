"""Forward and backward over a cut table: one launch for the table without its long rows, one for their parts.

The first launch writes every row, the long ones as rows that see nothing. The second runs the same kernel over copies
of these rows, and what it gives for each part goes into their places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import columns, row_parts
from .blocks_backward import backward_keys, backward_queries
from .blocks_forward import blocks_forward
from .long_rows import Cut
from .operands import Inputs, Results
from .ring import AUX


def forward(
    inputs: Inputs, by_queries: Cut, out: Tensor, lse: Tensor,
    *, scale: float, within: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    """As `blocks_forward` says; where nothing is seen the log-sum-exp is a sink's, and so long rows have theirs."""
    blocks_forward(inputs, by_queries.short, out, lse, scale=scale, within=within, sinks=sinks)
    long = by_queries.long
    if long is not None:
        q = inputs.q.index_select(2, long.copied)
        some_out, some_lse = q.new_empty(*q.shape[:3], out.shape[3]), lse.new_empty(q.shape[:3])
        blocks_forward(Inputs(q, *inputs[1:]), long.table, some_out, some_lse, scale=scale, within=within, copies=True)
        row_parts.write_merged((some_out, some_lse), long, out, lse, within)


def queries_backward(
    inputs: Inputs, results: Results, by_queries: Cut, dq: Tensor, *, scale: float, within: Tensor | None
) -> Tensor:
    """Writes dq and returns aux, as `backward_queries` says; the aux of a long row does not depend on its list."""
    aux = _auxiliary(inputs.q)
    backward_queries(inputs, results, by_queries.short, dq, aux, scale=scale, within=within)
    long = by_queries.long
    if long is not None:
        q, some = inputs.q.index_select(2, long.copied), results.of(long.copied)
        some_dq, some_aux = torch.empty_like(q), _auxiliary(q)
        some_inputs = Inputs(q, *inputs[1:])
        backward_queries(some_inputs, some, long.table, some_dq, some_aux, scale=scale, within=within, copies=True)
        row_parts.write_sums(some_dq, long, dq, within)
    return aux


def keys_backward(
    inputs: Inputs, grad_out: Tensor, aux: Tensor, by_keys: Cut, gradients: tuple[Tensor, Tensor],
    *, scale: float, within: Tensor | None,
) -> None:  # fmt: skip
    """Writes the gradients of keys and values. Copies of keys outside of a sequence have some until sums are made."""
    backward_keys(inputs, grad_out, aux, by_keys.short, gradients, scale=scale, within=within)
    long = by_keys.long
    if long is not None:
        some = columns.gathered(inputs.k, inputs.v, long.copied)
        parts = torch.empty_like(some[0]), torch.empty_like(some[1])
        backward_keys(Inputs(inputs.q, *some), grad_out, aux, long.table, parts, scale=scale, within=None)
        for part, total in zip(parts, gradients, strict=True):
            row_parts.write_sums(part, long, total, within)


def _auxiliary(q: Tensor) -> Tensor:
    return q.new_empty((*q.shape[:-1], AUX.value), dtype=torch.bfloat16)
