"""What an index's lesson costs beside attention: its loss with all gradients, over chosen keys and over all.

Queries and latents are those that attention had. The log-sum-exp is about theirs and differs from head to head: how
long the loss takes does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from gossamer.indexed import Selection, indexer_loss

from .figures import Figure, error_of, judged, timed
from .index import drawn
from .problem import SCALE, WIDTH, Problem

LONGEST_OVER_ALL = 32_768
"""Tokens, all of whose pairs are measured: of four times as many there are sixteen times the pairs."""
LATE = 32
"""Queries, all of which see the key whose gradient is judged where nothing is chosen."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the loss is made of."""

    index: tuple[Tensor, Tensor, Tensor]
    """Queries [1, J, n, D], keys [1, n, D] and weights [1, n, J], which learn."""
    q: Tensor
    """[1, H, n, 576]"""
    latents: Tensor
    """[1, n, 576]"""
    lse: Tensor
    """[1, H, n]"""
    chosen: Tensor | None
    """[1, n, k]; None where the index learns from all keys."""

    def results(self, query: int | None = None) -> tuple[Tensor, ...]:
        """(loss, its gradients) of all queries, or of one."""
        (index_q, index_k, weights), chosen = self.index, self.chosen
        q, latents, lse = self.q, self.latents, self.lse
        if query is not None:
            own, seen = slice(query, query + 1), slice(query + 1)
            index_q, index_k, weights = index_q[:, :, own], index_k[:, seen], weights[:, own]
            q, latents, lse = q[:, :, own], latents[:, seen], lse[:, :, own]
            chosen = None if chosen is None else chosen[:, own]
        selection = None if chosen is None else Selection(chosen)
        loss = indexer_loss((index_q, index_k, weights), q, latents[:, None], lse, selection, scale=SCALE)
        return loss, *torch.autograd.grad(loss, self.index)

    def keys_of(self, query: int) -> Tensor:
        """Those that a query learns from."""
        if self.chosen is None:
            return torch.arange(query + 1, device=self.q.device)
        return self.chosen[0, query][self.chosen[0, query] >= 0].long()

    def exact(self, query: int) -> tuple[Tensor, ...]:
        """(loss, its gradients of the query, of its weights, and of `keys_of` it) of one query, by float64."""
        keys = self.keys_of(query)
        looks = self.q[0, :, query].double() @ self.latents[0, keys].double().T * SCALE
        looks = (looks - self.lse[0, :, query, None].double()).exp().sum(0)
        given = self.index[0][0, :, query], self.index[2][0, query], self.index[1][0, keys]
        q, weights, k = (x.detach().double().requires_grad_() for x in given)
        scores = (weights[:, None] * torch.relu(q @ k.T)).sum(0)
        loss = kl_div(scores.log_softmax(-1), looks / looks.sum(), reduction="sum")
        return loss.detach(), *torch.autograd.grad(loss, (q, weights, k))

    def due_to(self, key: int) -> Tensor:
        """The gradient of a key: of all queries' losses together, by float64."""
        due = torch.zeros_like(self.index[1][0, key], dtype=torch.float64)
        for query in range(key, self.q.shape[2]):
            at = self.keys_of(query) == key
            if at.any():
                due += self.exact(query)[3][at][0]
        return due


def loss_figures(problem: Problem) -> Iterator[Figure]:
    """Ours over chosen keys, and over all keys where these are not too many."""
    lesson = lesson_of(problem)
    each = 2.0 * (problem.heads * WIDTH + 3 * problem.index_heads * problem.index_width)
    figure = Figure("loss", "chosen keys", "gossamer", problem.tokens, operations=each * problem.pairs)
    yield _measured(figure, lesson, problem)
    figure = replace(figure, case="all keys", operations=each * problem.all_pairs)
    if problem.tokens > LONGEST_OVER_ALL:
        yield replace(figure, absence=f"not measured beyond {LONGEST_OVER_ALL:,} tokens")
    else:
        yield _measured(figure, replace(lesson, chosen=None), problem)


def lesson_of(problem: Problem) -> Lesson:
    """Over keys chosen at random; the index's weights are as small as its layer makes them."""
    index_q, index_k, weights = drawn(problem)
    weights *= (problem.index_heads * problem.index_width) ** -0.5
    q, latents = problem.drawn(problem.heads, problem.tokens, WIDTH), problem.drawn(problem.tokens, WIDTH)
    lse = torch.arange(1.0, problem.tokens + 1, device=problem.device).log() + WIDTH * SCALE**2 / 2
    lse = lse + 0.5 * torch.randn(1, problem.heads, problem.tokens, device=problem.device)
    index = index_q.requires_grad_(), index_k.requires_grad_(), weights.requires_grad_()
    return Lesson(index, q, latents, lse, problem.random_choice())


def _measured(figure: Figure, lesson: Lesson, problem: Problem) -> Figure:
    figure = replace(figure, error=largest_error(lesson, lesson.results()[1:], problem))
    return judged(figure) or timed(figure, lesson.results, device=problem.device, repeats=problem.repeats)


def largest_error(lesson: Lesson, gradients: Sequence[Tensor], problem: Problem) -> float:
    """Of a few queries' losses, and of the gradients of these queries, of their weights, and of one late key."""
    some, (of_queries, of_keys, of_weights) = problem.some_queries(), gradients
    late = problem.tokens - (LATE if lesson.chosen is None else problem.tokens // 16)
    parts = of_queries[0, :, some].transpose(0, 1), of_weights[0, some], of_keys[0, late]
    losses = torch.stack([lesson.results(query)[0].detach() for query in some])
    found = losses, *(x.double() * problem.tokens for x in parts)  # the whole loss is a mean, theirs are their own
    exact = zip(*(lesson.exact(query)[:3] for query in some), strict=True)
    wanted = *(torch.stack(x) for x in exact), lesson.due_to(late)
    return max(error_of(x, right) for x, right in zip(found, wanted, strict=True))
