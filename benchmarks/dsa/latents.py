"""Attention over chosen latents: forward, and the gradients of queries and latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gossamer.indexed import Selection, attend_latent

from .exact import error_of_a_latent, error_of_rows, exact_rows
from .figures import Figure, judged, timed
from .problem import SCALE, VALUE, WIDTH, Problem
from .tilelang import tilelang_figures


def latent_figures(problem: Problem, examples: Path | None = None) -> Iterator[Figure]:
    """Ours and, of the folder of their examples, TileLang's, over the same keys."""
    chosen = problem.random_choice()
    pairs = 2.0 * problem.pairs * problem.heads
    forward = Figure("latents", "forward", "gossamer", problem.tokens, operations=pairs * (WIDTH + VALUE))
    backward = Figure("latents", "backward", "gossamer", problem.tokens, operations=pairs * (3 * WIDTH + 2 * VALUE))
    yield from _ours(problem, chosen, (forward, backward))
    torch.cuda.empty_cache()
    yield from tilelang_figures(problem, chosen, (forward, backward), examples)


def _ours(problem: Problem, chosen: Tensor, figures: tuple[Figure, Figure]) -> Iterator[Figure]:
    q = problem.drawn(problem.heads, problem.tokens, WIDTH).requires_grad_()
    latents = problem.drawn(problem.tokens, WIDTH).requires_grad_()

    def forward() -> Tensor:
        return attend_latent(q, latents, Selection(chosen), value_width=VALUE, scale=SCALE)

    def without_graph() -> Tensor:
        with torch.no_grad():
            return forward()

    out = forward()
    grad = torch.randn_like(out)
    given = q, latents, grad
    found = torch.autograd.grad(out, (q, latents), grad, retain_graph=True)
    exact = exact_rows(problem, chosen, given)
    of_output, of_queries = (error_of_rows(problem, *pair) for pair in zip((out, found[0]), exact, strict=True))
    of_latent = error_of_a_latent(problem, chosen, given, found[1])
    del found
    figure = replace(figures[0], error=of_output)
    yield judged(figure) or timed(figure, without_graph, device=problem.device, repeats=problem.repeats)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (q, latents), grad, retain_graph=True)

    figure = replace(figures[1], error=max(of_queries, of_latent))
    yield judged(figure) or timed(figure, backward, device=problem.device, repeats=problem.repeats)
