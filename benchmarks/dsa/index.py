"""The lightning indexer and its exact choice, beside products by PyTorch and its `topk`.

PyTorch is timed twice. `weighted` computes what the index does: products of all index heads, rectified, weighted and
summed, then `topk`. `products` is given the sum: it multiplies and chooses among scores that are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gossamer.indexed import top_keys
from gossamer.selectors.quantized import quantized

from .figures import Figure, timed
from .problem import Problem
from .tilelang import absent, index_of

ROWS = {"weighted": 64, "products": 128}
"""Queries at a time."""

Inputs = tuple[Tensor, Tensor, Tensor]


def index_figures(problem: Problem, examples: Path | None = None) -> Iterator[Figure]:
    """Ours in bfloat16 and in eight bits; PyTorch's products in both; of the folder of their examples, TileLang's."""
    inputs = drawn(problem)
    operations = 2.0 * problem.all_pairs * problem.index_heads * problem.index_width
    for precision in ("as given", "fp8"):
        case = "bf16" if precision == "as given" else "fp8"
        figure = Figure("index", case, "gossamer", problem.tokens, operations=operations)
        ours = partial(chosen, inputs, problem, precision)
        wrong = fault(ours(), inputs, problem, precision)
        figure = replace(figure, absence=wrong)
        yield figure if wrong else timed(figure, ours, device=problem.device, repeats=problem.repeats)
        for name, theirs in (("products", products_and_topk), ("weighted", weighted_and_topk)):
            figure = Figure("index", case, f"PyTorch, {name}", problem.tokens, operations=operations)
            if name == "weighted" and case == "fp8":
                continue  # products in eight bits come out in bfloat16, and what follows is the same
            yield timed(figure, partial(theirs, inputs, problem, case), device=problem.device, repeats=problem.repeats)
    torch.cuda.empty_cache()
    figure = Figure("index", "fp8", "TileLang", problem.tokens, operations=operations)
    yield _tilelang(figure, inputs, problem, examples)


def _tilelang(figure: Figure, inputs: Inputs, problem: Problem, examples: Path | None) -> Figure:
    try:
        theirs = index_of(examples, inputs, problem)
        theirs()  # compiles
        wrong = fault(theirs(), inputs, problem, "fp8")
        figure = replace(figure, absence=wrong)
        return figure if wrong else timed(figure, theirs, device=problem.device, repeats=problem.repeats)
    except Exception as error:  # whatever a compiler of theirs may raise is why there is no figure
        return absent(figure, error)


def drawn(problem: Problem) -> Inputs:
    """Queries [1, J, n, D], keys [1, n, D] and weights [1, n, J]."""
    q = problem.drawn(problem.index_heads, problem.tokens, problem.index_width)
    weights = torch.randn(1, problem.tokens, problem.index_heads, device=problem.device)
    return q, problem.drawn(problem.tokens, problem.index_width), weights


def chosen(inputs: Inputs, problem: Problem, precision: str) -> Tensor:
    """Ours."""
    return top_keys(*inputs, problem.chosen, precision=precision)


def fault(found: Tensor, inputs: Inputs, problem: Problem, precision: str) -> str | None:
    """Where a choice is not that of float64, but for scores closer to the last chosen than rounding, or None."""
    q, k, weights = inputs
    if precision != "as given":
        (q8, q_scale), (k8, k_scale) = quantized(q, precision), quantized(k, precision)
        q, k = q8.double() * q_scale[..., None], k8.double() * k_scale[..., None]
    for query in problem.some_queries():
        products = torch.relu(q[0, :, query].double() @ k[0, : query + 1].double().T)
        scores = (weights[0, query].double()[:, None] * products).sum(0)
        count = min(problem.chosen, query + 1)
        own = found[0, query][:count].long()
        if own.min() < 0 or own.max() > query or len(own.unique()) != count:
            return f"query {query} chose what is no visible key, or one twice"
        least = scores.topk(count).values[-1]
        near = (1e-5 if precision == "as given" else 1e-3) * scores.abs().max()
        left = torch.ones(query + 1, dtype=torch.bool, device=own.device).index_fill_(0, own, False)
        if scores[own].min() < least - near or (left.any() and scores[left].max() > least + near):
            return f"query {query} chose a key of a lower score than one that it left"
    return None


def products_and_topk(inputs: Inputs, problem: Problem, case: str) -> None:
    """All products, a few queries at a time, and a choice among as many scores, whatever they are."""
    q, k, _ = inputs
    rows, scores = ROWS["products"], torch.randn(ROWS["products"], problem.tokens, device=problem.device)
    multiply = multiplied(k[0], case)
    for first in range(0, problem.tokens, rows):
        seen = min(first + rows, problem.tokens)
        multiply(q[0, :, first:seen].flatten(0, 1), seen)
        scores[:, :seen].topk(min(problem.chosen, seen), -1)


def weighted_and_topk(inputs: Inputs, problem: Problem, case: str) -> None:
    """Products, rectified and weighted, the future hidden, and the choice, a few queries at a time."""
    q, k, weights = inputs
    rows, keys = ROWS["weighted"], torch.arange(problem.tokens, device=problem.device)
    multiply = multiplied(k[0], case)
    for first in range(0, problem.tokens, rows):
        seen = min(first + rows, problem.tokens)
        some = slice(first, seen)
        products = multiply(q[0, :, some].transpose(0, 1).flatten(0, 1), seen).relu_()
        products = products.unflatten(0, (-1, problem.index_heads))
        scores = torch.bmm(weights[0, some, None].to(products.dtype), products)[:, 0].float()
        scores.masked_fill_(keys[:seen] > keys[some, None], -torch.inf).topk(min(problem.chosen, seen), -1)


def multiplied(k: Tensor, case: str) -> Callable[[Tensor, int], Tensor]:
    """(rows, keys) -> rows times the first keys in bfloat16, of numbers in bfloat16 or rounded to eight bits before."""
    if case == "bf16":
        return lambda rows, seen: rows @ k[:seen].T
    values, scale = quantized(k)

    def product(rows: Tensor, seen: int) -> Tensor:
        own, own_scale = quantized(rows)
        scales = {"scale_a": own_scale[:, None].float(), "scale_b": scale[None, :seen].float()}
        return torch._scaled_mm(own, values[:seen].T, **scales, out_dtype=torch.bfloat16)

    return product
