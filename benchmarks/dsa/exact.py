"""Attention over chosen latents in float64, at a few places, which judges whatever was found there."""

from __future__ import annotations

import torch
from torch import Tensor

from .figures import error_of
from .problem import SCALE, VALUE, WIDTH, Problem

Given = tuple[Tensor, Tensor, Tensor]
"""Queries [1, H, n, 576], latents [1, n, 576] and the gradient of the output [1, H, n, 512]."""


def exact_rows(problem: Problem, chosen: Tensor, given: Given) -> tuple[Tensor, Tensor]:
    """The output and the queries' gradient, at a few queries, all heads."""
    q, latents, grad = (x.detach() for x in given)
    wanted: list[tuple[Tensor, Tensor]] = []
    for query in problem.some_queries():
        keys = latents[0, chosen[0, query][chosen[0, query] >= 0].long()].double()
        own = q[0, :, query].double().requires_grad_()
        out = (own @ keys.T * SCALE).softmax(-1) @ keys[:, :VALUE]
        wanted.append((out.detach(), torch.autograd.grad(out, own, grad[0, :, query].double())[0]))
    outputs, gradients = zip(*wanted, strict=True)
    return torch.stack(outputs), torch.stack(gradients)


def error_of_rows(problem: Problem, found: Tensor, exact: Tensor) -> float:
    """Of what was found for all queries [1, H, n, D], at the few."""
    return error_of(found[0, :, problem.some_queries()].transpose(0, 1), exact)


def error_of_a_latent(problem: Problem, chosen: Tensor, given: Given, found: Tensor) -> float:
    """Of one late latent's gradient, summed over all queries that chose it and all heads."""
    q, latents, grad = (x.detach()[0] for x in given)
    key = problem.tokens - problem.tokens // 16
    wanted = torch.zeros(WIDTH, dtype=torch.float64, device=q.device)
    for query in (chosen[0, key:] == key).any(-1).nonzero()[:, 0].add(key).tolist():
        seen = chosen[0, query][chosen[0, query] >= 0].long()
        keys, own, due = latents[seen].double().requires_grad_(), q[:, query].double(), grad[:, query].double()
        out = (own @ keys.T * SCALE).softmax(-1) @ keys[:, :VALUE]
        wanted += torch.autograd.grad(out, keys, due)[0][seen == key][0]
    return error_of(found[0, key], wanted)
