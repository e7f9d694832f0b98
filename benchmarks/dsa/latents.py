"""Attention over chosen latents: forward, and the gradients of queries and latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gossamer.indexed import Selection, attend_latent

from .figures import Figure, error_of, judged, timed
from .problem import VALUE, WIDTH, Problem

SCALE = 192**-0.5


def latent_figures(problem: Problem) -> Iterator[Figure]:
    """Ours, forward and backward."""
    chosen = problem.random_choice()
    q = problem.drawn(problem.heads, problem.tokens, WIDTH).requires_grad_()
    latents = problem.drawn(problem.tokens, WIDTH).requires_grad_()
    shared = {"tokens": problem.tokens, "contender": "gossamer"}
    pairs = problem.pairs * problem.heads

    def forward() -> Tensor:
        return attend_latent(q, latents, Selection(chosen), value_width=VALUE, scale=SCALE)

    def without_graph() -> Tensor:
        with torch.no_grad():
            return forward()

    out = forward()
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, latents), grad, retain_graph=True)
    of_output, of_queries = _errors(problem, chosen, (q, latents, grad), (out, found[0]))
    of_latent = _error_of_a_latent(problem, chosen, (q, latents, grad), found[1])
    del found
    figure = Figure("latents", "forward", operations=2.0 * pairs * (WIDTH + VALUE), error=of_output, **shared)
    yield judged(figure) or timed(figure, without_graph, device=problem.device, repeats=problem.repeats)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (q, latents), grad, retain_graph=True)

    error = max(of_queries, of_latent)
    figure = Figure("latents", "backward", operations=2.0 * pairs * (3 * WIDTH + 2 * VALUE), error=error, **shared)
    yield judged(figure) or timed(figure, backward, device=problem.device, repeats=problem.repeats)


def _errors(
    problem: Problem, chosen: Tensor, given: tuple[Tensor, ...], found: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Of the output and the queries' gradient, at a few queries, all heads: by float64."""
    q, latents, grad = (x.detach() for x in given)
    wanted: list[tuple[Tensor, Tensor]] = []
    for query in problem.some_queries():
        keys = latents[0, chosen[0, query][chosen[0, query] >= 0].long()].double()
        own = q[0, :, query].double().requires_grad_()
        out = (own @ keys.T * SCALE).softmax(-1) @ keys[:, :VALUE]
        wanted.append((out.detach(), torch.autograd.grad(out, own, grad[0, :, query].double())[0]))
    some = problem.some_queries()
    pairs = zip(found, zip(*wanted, strict=True), strict=True)
    first, second = (error_of(x[0, :, some].transpose(0, 1), torch.stack(exact)) for x, exact in pairs)
    return first, second


def _error_of_a_latent(problem: Problem, chosen: Tensor, given: tuple[Tensor, ...], found: Tensor) -> float:
    """Of one late latent's gradient: by float64, summed over all queries that chose it and all heads."""
    q, latents, grad = (x.detach()[0] for x in given)
    key = problem.tokens - problem.tokens // 16
    wanted = torch.zeros(WIDTH, dtype=torch.float64, device=q.device)
    for query in (chosen[0, key:] == key).any(-1).nonzero()[:, 0].add(key).tolist():
        seen = chosen[0, query][chosen[0, query] >= 0].long()
        keys, own, due = latents[seen].double().requires_grad_(), q[:, query].double(), grad[:, query].double()
        out = (own @ keys.T * SCALE).softmax(-1) @ keys[:, :VALUE]
        wanted += torch.autograd.grad(out, keys, due)[0][seen == key][0]
    return error_of(found[0, key], wanted)
