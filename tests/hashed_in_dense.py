"""Hashed attention by its definition, over dense masks in the dtype of the inputs, sharing no code with the package.

`x` [H, N, D] and `v` [H, N, Dv] are one sequence. Which pairs meet is found token by token, in plain Python.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rules(NamedTuple):
    """What the definition is told."""

    chunk: int
    before: int = 1
    after: int = 0
    edge: str = "stops"
    causal: bool = True
    other_buckets: bool = False
    repeats: bool = False
    scale: float = 1.0
    epsilon: float = 1e-6


def meetings(buckets: Tensor, rules: Rules, within: tuple[int, int]) -> Tensor:
    """int [R, N, N]: how often each query sees each key in each round, of buckets [R, N]."""
    (rounds, length), buckets = buckets.shape, buckets.tolist()
    count = -(-length // rules.chunk)
    chunks = []  # of each round: of each chunk its tokens
    for row in buckets:
        order = sorted(range(*within), key=lambda token: (row[token], token))
        chunks.append([order[first : first + rules.chunk] for first in range(0, count * rules.chunk, rules.chunk)])
    times = [[[0] * length for _ in range(length)] for _ in range(rounds)]
    for turn, row in enumerate(buckets):
        for chunk in range(count):
            near = set()
            for other in range(chunk - rules.before, chunk + rules.after + 1):
                if rules.edge == "crosses":
                    near.add(divmod((turn * count + other) % (rounds * count), count))
                elif rules.edge == "wraps":
                    near.add((turn, other % count))
                elif 0 <= other < count:
                    near.add((turn, other))
            for query in chunks[turn][chunk]:
                for round_of_key, other in near:
                    for key in chunks[round_of_key][other]:
                        same = round_of_key == turn and row[query] == row[key]
                        if (key <= query or not rules.causal) and (same or rules.other_buckets):
                            times[turn][query][key] += 1
    return torch.tensor(times)


def hashed_in_dense(
    x: Tensor, v: Tensor, buckets: Tensor, rules: Rules, within: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """(out [H, N, Dv], log-sum-exp [H, N]) by equations 13 to 16 of the paper; buckets are [H, R, N]."""
    within = (0, x.shape[1]) if within is None else within
    outs, lses = [], []
    for x_, v_, buckets_ in zip(x, v, buckets, strict=True):
        times = meetings(buckets_, rules, within).to(x.device)  # [R, N, N]
        keys = x_ / (x_.square().sum(-1, keepdim=True) + x_.shape[-1] * rules.epsilon).sqrt()
        score = x_ @ keys.mT * rules.scale
        if not rules.repeats:
            score = score - times.sum(0).clamp(min=1).to(score.dtype).log()
        own = torch.eye(x_.shape[0], dtype=torch.bool, device=x.device)
        alone = (times.sum(0) * ~own).sum(-1) == 0  # what a penalty of 1e5 comes to, without its rounding
        score = torch.where(own, 0.0, score) + times.clamp(min=1).to(score.dtype).log()  # [R, N, N]
        score = score.masked_fill((times == 0) | own & ~alone[:, None], -torch.inf)
        of_round = torch.logsumexp(score, -1)  # [R, N]
        empty = of_round == -torch.inf
        weight = torch.exp(score - of_round.masked_fill(empty, 0.0)[..., None])
        lse = torch.logsumexp(of_round, 0)
        share = torch.exp(of_round - lse.masked_fill(lse == -torch.inf, 0.0))
        outs.append((share[..., None] * (weight @ v_)).sum(0))
        lses.append(torch.where(alone & (lse > -torch.inf), -6e4, lse))
    return torch.stack(outs), torch.stack(lses)
