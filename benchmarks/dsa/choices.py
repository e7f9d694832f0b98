"""Choices of blocks for heads that share keys: as a trained model's may be, and the worst that there can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .problem import Problem

CORRELATION = 128
"""Queries over which a realistic score falls to 1/e of what it was."""

AT_ONCE = 64
"""Queries whose choice is drawn together."""


def realistic_blocks(problem: Problem, seed: int = 0) -> Tensor:
    """int32 [1, G, tokens, chosen]: the first block, the query's own and the one before it, and the best by a score
    that changes slowly from query to query; -1 behind the last."""

    def always(block: Tensor, own: Tensor) -> Tensor:
        return (block == 0) | (block == own) | (block == own - 1)

    return _chosen(problem, _slow_scores(problem, seed), always)


def random_blocks(problem: Problem, seed: int = 0) -> Tensor:
    """int32 [1, G, tokens, chosen]: the query's own block, and earlier ones of which neighbours share no more than
    chance has it; -1 behind the last."""
    return _chosen(problem, _fresh_scores(problem, seed), lambda block, own: block == own)


BLOCKS: dict[str, Callable[[Problem], Tensor]] = {"realistic": realistic_blocks, "random": random_blocks}


def pairs_of(problem: Problem, chosen: Tensor) -> int:
    """Pairs of a query of one of all heads and a key that it sees."""
    size = problem.grouped.block
    query = torch.arange(problem.tokens, device=chosen.device)[:, None]
    seen = (query + 1 - chosen.long() * size).clamp(0, size).masked_fill(chosen < 0, 0)
    return int(seen.sum()) * problem.grouped.repeats


def table_of(problem: Problem, chosen: Tensor) -> Tensor:
    """bool [G, tokens, blocks]: who chose what."""
    blocks = _blocks(problem)
    table = torch.zeros(*chosen.shape[1:3], blocks + 1, dtype=torch.bool, device=chosen.device)
    chosen = torch.where(chosen < 0, blocks, chosen)[0]
    for head, own in zip(table, chosen, strict=True):
        head.scatter_(1, own.long(), True)
    return table[..., :blocks]


def _blocks(problem: Problem) -> int:
    return -(-problem.tokens // problem.grouped.block)


def _chosen(problem: Problem, scores: Iterator[Tensor], always: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What scores highest of the blocks up to each query's own."""
    shape, blocks = problem.grouped, _blocks(problem)
    found = torch.full((1, shape.key_heads, problem.tokens, shape.chosen), -1, dtype=torch.int32, device=problem.device)
    count, block = min(shape.chosen, blocks), torch.arange(blocks, device=problem.device)
    for first in range(0, problem.tokens, AT_ONCE):
        here = found[0, :, first : first + AT_ONCE]
        own = torch.arange(first, first + here.shape[1], device=problem.device)[:, None] // shape.block
        score = next(scores)[:, : here.shape[1]]
        score = score.masked_fill(always(block, own), torch.inf).masked_fill(block > own, -torch.inf)
        best, which = score.topk(count, -1)
        here[..., :count] = which.masked_fill(best == -torch.inf, -1)
    return found


def _fresh_scores(problem: Problem, seed: int) -> Iterator[Tensor]:
    """[G, AT_ONCE, blocks] of queries in order: each number by itself."""
    draw = torch.Generator(problem.device).manual_seed(seed)
    shape = problem.grouped.key_heads, AT_ONCE, _blocks(problem)
    while True:
        yield torch.rand(shape, device=problem.device, generator=draw)


def _slow_scores(problem: Problem, seed: int) -> Iterator[Tensor]:
    """[G, AT_ONCE, blocks] of queries in order: a block's scores are an autoregressive process of order one."""
    draw = torch.Generator(problem.device).manual_seed(seed)
    heads, blocks = problem.grouped.key_heads, _blocks(problem)
    keep = math.exp(-1 / CORRELATION)
    step = torch.arange(AT_ONCE, device=problem.device)
    ages = step[:, None] - step
    weights = math.sqrt(1 - keep * keep) * (keep ** ages.clamp(min=0)).tril()
    fading = keep ** (step + 1)[:, None]
    before = torch.randn(heads, 1, blocks, device=problem.device, generator=draw)
    while True:
        news = torch.randn(heads, AT_ONCE, blocks, device=problem.device, generator=draw)
        scores = weights @ news + fading * before
        before = scores[:, -1:]
        yield scores
