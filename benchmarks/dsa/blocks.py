"""Attention over chosen blocks where query heads share keys, beside FlexAttention and dense attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gossamer.bench import peers
from gossamer.indexed import Selection, attend_indexed

from .block_errors import errors_of
from .choices import BLOCKS, pairs_of, table_of
from .figures import Figure, timed
from .problem import Problem

LARGEST_ERROR = 0.01
"""Of outputs and of gradients, in bfloat16."""
FLEX_BLOCK = 128
"""Queries and keys of a block of FlexAttention, as it has them by default."""
FLEX_LONGEST = 32_768
"""Tokens for which FlexAttention is compiled."""

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Leaves = tuple[Tensor, Tensor, Tensor]


def block_figures(problem: Problem) -> Iterator[Figure]:
    """Ours, FlexAttention and dense attention, for each kind of choice."""
    shape = problem.grouped
    heads = shape.heads, shape.key_heads, shape.key_heads
    q, k, v = (problem.drawn(count, problem.tokens, shape.width).requires_grad_() for count in heads)
    for kind, choose in BLOCKS.items():
        chosen = choose(problem)
        operations = 4.0 * shape.width * pairs_of(problem, chosen)
        figure = Figure("blocks", f"{kind}, forward", "gossamer", problem.tokens, operations=operations)
        yield from _both(problem, figure, partial(_ours, problem, chosen), (q, k, v), chosen)
        theirs = {"FlexAttention": partial(_flex, problem, chosen), "dense, cuDNN": lambda: _cudnn}
        for name, make in theirs.items():
            yield from _peers(problem, replace(figure, contender=name), make, (q, k, v), chosen)


def _ours(problem: Problem, chosen: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend_indexed(q, k, v, Selection(chosen, problem.grouped.block, causal=True))


def _peers(
    problem: Problem, figure: Figure, make: Callable[[], Attention], leaves: Leaves, chosen: Tensor
) -> Iterator[Figure]:
    """What another's attention takes; its errors are told where it is given the choice."""
    missing = peers.only_cuda_half(problem.device, problem.dtype)
    if figure.contender == "FlexAttention" and problem.tokens > FLEX_LONGEST:
        missing = f"it is compiled for {FLEX_LONGEST:,} tokens alone"
    if missing:
        yield replace(figure, absence=missing)
        return
    try:
        yield from _both(problem, figure, make(), leaves, chosen if figure.contender == "FlexAttention" else None)
    except Exception as error:  # whatever a peer's compiler raises
        yield replace(figure, absence=f"{type(error).__name__}: {str(error).splitlines()[0][:150]}")


def _both(
    problem: Problem, figure: Figure, attention: Attention, leaves: Leaves, chosen: Tensor | None
) -> Iterator[Figure]:
    """Forward as in training, then backward alone; ours only where it is right."""
    out = attention(*leaves)
    grad = torch.randn_like(out)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, leaves, grad, retain_graph=True)

    of_output, of_gradients = None, None
    if chosen is not None:
        of_output, of_gradients = errors_of(problem, chosen, (*leaves, grad), (out, *backward()))
    case = figure.case.replace("forward", "backward")
    second = replace(figure, case=case, operations=2.5 * (figure.operations or 0.0), error=of_gradients)
    for each, step in ((replace(figure, error=of_output), partial(attention, *leaves)), (second, backward)):
        if each.contender == "gossamer" and not (each.error is not None and each.error <= LARGEST_ERROR):
            yield replace(each, absence=f"it is {each.error:.1e} off")
        else:
            yield timed(each, step, device=problem.device, repeats=problem.repeats)


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _flex(problem: Problem, chosen: Tensor) -> Attention:
    return peers.flex_attention(flex_blocks(problem, table_of(problem, chosen)))


def flex_blocks(problem: Problem, table: Tensor) -> Any:
    """FlexAttention's mask of what the table [G, tokens, blocks] says: its own blocks, and what of them is seen."""
    from torch.nn.attention.flex_attention import BlockMask

    shape, tokens = problem.grouped, problem.tokens
    repeats, size = shape.repeats, shape.block

    def allows(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & table[head // repeats, query, key // size]

    tiles = table.unflatten(1, (-1, FLEX_BLOCK)).unflatten(-1, (-1, FLEX_BLOCK // size))  # [G, rows, 128, columns, 2]
    row = torch.arange(tokens // FLEX_BLOCK, device=table.device)
    full = tiles.all(-1).all(2) & (row < row[:, None])
    some = tiles.any(-1).any(2) & (row <= row[:, None]) & ~full
    lists = []
    for blocks in (some, full):
        blocks = blocks.repeat_interleave(repeats, 0)[None]
        numbers = blocks.int().argsort(dim=-1, descending=True, stable=True)
        lists += [blocks.sum(-1, dtype=torch.int32), numbers.int()]
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=FLEX_BLOCK, mask_mod=allows, seq_lengths=(tokens, tokens))
