"""What the operators have in common whose keys are chosen on the device: nobody on the host knows which pairs are seen.

Such an operator takes q, k and v, some tensors that say what is seen, and settings; its backward takes the gradients of
the output and of the log-sum-exp before these, and the output and the log-sum-exp behind v.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..kernels import Saved, Softmax
from ..kernels.layout import beside, empty_beside
from ..patterns.causal import Causal
from .boundary import own_dtypes
from .choice import Call, choice

EVERYTHING = (Causal() | ~Causal()).spec
"""What the plan shows; what of it is seen, the tensors say."""


def forward(q: Tensor, k: Tensor, v: Tensor, softmax: Softmax, backend: str | None) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp) by the backend that takes what `softmax` says is seen."""
    made, chosen = choice(Call.of(q, k, v, None, EVERYTHING, softmax), backend)
    with own_dtypes(q.device):
        out, lse = chosen.forward(q, k, v, None, made, softmax)
    return beside(out, q), lse


def backward(
    saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, softmax: Softmax, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    q, k, v = saved.q, saved.k, saved.v
    call = Call.of(q, k, v, None, EVERYTHING, softmax)
    made, chosen = choice(call._replace(backward=True), backend)
    if grad_lse is not None:  # a query that sees nothing has no log-sum-exp to change, whatever comes back to it
        grad_lse = grad_lse.masked_fill(saved.lse == -torch.inf, 0.0)
    with own_dtypes(q.device):
        dq, dk, dv, _ = chosen.backward(saved, grad_out, grad_lse, made, softmax)
    return beside(dq, q), beside(dk, k), beside(dv, v)


def register(name: str, tensors: int) -> None:
    """Tells PyTorch the shapes, gradients and operations of `name` and `name_backward`.

    Behind v the operator takes so many `tensors`, and then its settings.
    """
    operator, its_backward = (getattr(torch.ops.gossamer, each) for each in (name, f"{name}_backward"))

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, *own = inputs
        ctx.save_for_backward(q, k, v, *output, *own[:tensors])
        ctx.settings = own[tensors:]
        ctx.set_materialize_grads(False)

    def gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, *rest = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        found = its_backward(grad_out, grad_lse, q, k, v, out, *rest, *ctx.settings)
        return *found, *(None for _ in range(tensors + len(ctx.settings)))

    def refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
        raise RuntimeError(f"{name} has no gradients of gradients; leave create_graph out")

    torch.library.register_fake(f"gossamer::{name}")(_shapes)
    torch.library.register_fake(f"gossamer::{name}_backward")(_backward_shapes)
    torch.library.register_autograd(f"gossamer::{name}", gradients, setup_context=save)
    torch.library.register_autograd(f"gossamer::{name}_backward", refuse_second_gradients)
    register_flop_formula(operator)(_operations)
    register_flop_formula(its_backward)(_backward_operations)


def _shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return empty_beside(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=lse_dtype)


def _backward_shapes(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (empty_beside(x, x.shape[-1]) for x in (q, k, v))
    return dq, dk, dv


def _operations(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * _most_pairs(q, k) * (q[3] + v[3])  # scores, output


def _backward_operations(
    grad_out: torch.Size, grad_lse: Any, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any,
    out_shape: Any = None, **__: Any,
) -> int:  # fmt: skip
    return 2 * _most_pairs(q, k) * (3 * q[3] + 2 * v[3])  # scores again, dq, dk; dv and the probabilities' own


def _most_pairs(q: torch.Size, k: torch.Size) -> int:
    """Every pair of the batch."""
    return q[0] * q[1] * q[2] * k[2]
