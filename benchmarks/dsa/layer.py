"""A whole layer's attention at great length: index, choice and attention over latents, beside dense attention.

Dense attention has the latents expanded to keys 192 and values 128 wide for each head, which is what it is fastest at;
expanding them, and taking them back into queries and outputs here, cost the same and are left out of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gossamer.bench import peers
from gossamer.indexed import Selection, attend_latent

from .figures import Figure, timed
from .index import chosen, drawn
from .problem import DENSE_VALUE, DENSE_WIDTH, SCALE, VALUE, WIDTH, Problem

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def layer_figures(problem: Problem) -> Iterator[Figure]:
    """Ours, then everyone's dense attention."""
    yield from _ours(problem)
    q, k = (problem.drawn(problem.heads, problem.tokens, DENSE_WIDTH).requires_grad_() for _ in range(2))
    v = problem.drawn(problem.heads, problem.tokens, DENSE_VALUE).requires_grad_()
    for name, attention in (("dense, cuDNN", cudnn), ("dense, FlashAttention-4", fa4)):
        yield from _dense(problem, name, attention, (q, k, v))


def _ours(problem: Problem) -> Iterator[Figure]:
    q = problem.drawn(problem.heads, problem.tokens, WIDTH).requires_grad_()
    latents, inputs = problem.drawn(problem.tokens, WIDTH).requires_grad_(), drawn(problem)
    figure = Figure("layer", "forward", "gossamer", problem.tokens)

    def forward() -> Tensor:
        found = Selection(chosen(inputs, problem, "fp8"))
        return attend_latent(q, latents, found, value_width=VALUE, scale=SCALE)

    yield from _both(problem, figure, forward, (q, latents))


def _dense(problem: Problem, name: str, attention: Attention, inputs: tuple[Tensor, ...]) -> Iterator[Figure]:
    operations = 2.0 * problem.all_pairs * problem.heads * (DENSE_WIDTH + DENSE_VALUE)
    figure = Figure("layer", "forward", name, problem.tokens, operations=operations)
    try:
        yield from _both(problem, figure, partial(attention, *inputs), inputs)
    except (RuntimeError, ImportError, AssertionError, TypeError) as error:
        yield replace(figure, absence=f"{type(error).__name__}: {str(error).splitlines()[0][:150]}")


def _both(
    problem: Problem, figure: Figure, forward: Callable[[], Tensor], inputs: tuple[Tensor, ...]
) -> Iterator[Figure]:
    """Forward, then backward alone."""

    def without_graph() -> Tensor:
        with torch.no_grad():
            return forward()

    yield timed(figure, without_graph, device=problem.device, repeats=problem.repeats)
    out = forward()
    grad = torch.randn_like(out)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, inputs, grad, retain_graph=True)

    of_backward = None if figure.operations is None else 2.5 * figure.operations
    figure = replace(figure, case="backward", operations=of_backward)
    yield timed(figure, backward, device=problem.device, repeats=problem.repeats)


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By PyTorch's door to cuDNN."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)


def fa4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention-4.

    Raises:
        ImportError: It is not there; the message says why.
    """
    missing = peers.flash_attention_4_missing(q.device, q.dtype)
    if missing:
        raise ImportError(missing)
    attention = import_module("flash_attn.cute").flash_attn_func
    found = attention(*(x.transpose(1, 2) for x in (q, k, v)), causal=True, softmax_scale=SCALE)
    return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)
