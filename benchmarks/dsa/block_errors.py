"""How far attention over chosen blocks is from float64: outputs and gradients of a few queries, and of one late key."""

from __future__ import annotations

import torch
from torch import Tensor

from .figures import error_of
from .problem import Problem

Given = tuple[Tensor, Tensor, Tensor, Tensor]
"""q, k, v and the outputs' gradient."""


def errors_of(problem: Problem, chosen: Tensor, given: Given, found: tuple[Tensor, ...]) -> tuple[float, float]:
    """(of outputs, the largest of gradients); found are the output and gradients of q, k and v."""
    given = tuple(x.detach()[0] for x in given)
    out, dq, dk, dv = (x.detach()[0] for x in found)
    some = problem.some_queries()
    exact = [_of_query(problem, chosen, given, query) for query in some]
    of_output, of_queries = (
        error_of(x[:, some].transpose(0, 1), torch.stack(wanted))
        for x, wanted in zip((out, dq), zip(*exact, strict=True), strict=True)
    )
    of_key, of_value = _of_key(problem, chosen, given, (dk, dv))
    return of_output, max(of_queries, of_key, of_value)


def _of_query(problem: Problem, chosen: Tensor, given: Given, query: int) -> tuple[Tensor, Tensor]:
    """(output, gradient) of one query, all heads [H, D]."""
    parts = [_exact(problem, chosen, given, query, head) for head in range(problem.grouped.key_heads)]
    out, dq = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return out, dq


def _of_key(problem: Problem, chosen: Tensor, given: Given, found: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Of one late key's and value's gradients in the last key head, summed over all queries that see it."""
    shape, head = problem.grouped, problem.grouped.key_heads - 1
    key = problem.tokens - problem.tokens // 16
    sums = torch.zeros(2, shape.width, dtype=torch.float64, device=chosen.device)
    sees = (chosen[0, head, key:] == key // shape.block).any(-1)
    for query in sees.nonzero()[:, 0].add(key).tolist():
        _, _, dk, dv, keys = _exact(problem, chosen, given, query, head)
        sums += torch.stack([dk[keys == key][0], dv[keys == key][0]])
    of_key, of_value = (error_of(x[head, key], wanted) for x, wanted in zip(found, sums, strict=True))
    return of_key, of_value


def _exact(problem: Problem, chosen: Tensor, given: Given, query: int, head: int) -> tuple[Tensor, ...]:
    """(output, dq, dk, dv, the keys that are seen) of a query in all query heads of one key head."""
    q, k, v, grad = given
    shape = problem.grouped
    own = slice(head * shape.repeats, (head + 1) * shape.repeats)
    blocks = chosen[0, head, query][chosen[0, head, query] >= 0].long()
    keys = (blocks[:, None] * shape.block + torch.arange(shape.block, device=blocks.device)).flatten()
    keys = keys[keys <= query]
    inputs = [x.double().requires_grad_() for x in (q[own, query], k[head, keys], v[head, keys])]
    out = (inputs[0] @ inputs[1].T * shape.width**-0.5).softmax(-1) @ inputs[2]
    return out.detach(), *torch.autograd.grad(out, inputs, grad[own, query].double()), keys
