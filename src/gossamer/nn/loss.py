"""The loss of a language model whose logits are too many to hold."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

ROWS, CUDA_ROWS = 1024, 8192
"""Tokens that have logits at a time. A GPU wants many: each part reads and writes the weight's whole gradient."""


def linear_cross_entropy(
    x: Float[Tensor, "B N E"],
    weight: Float[Tensor, "V E"],
    targets: Int64[Tensor, "B N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    ignored: int = -1,
    known: int | None = None,
    rows: int | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy (in nats) of the logits `x · weightᵀ + bias`, of which only `rows` tokens are held at a time.

    The gradients are made in the forward, while a part's logits are at hand: no logits are kept, or made twice.
    Softmax and sums are taken in float32, or in float64 where the logits are.

    Args:
        bias: Added to each token's logit.
        ignored: Targets equal to it are left out of the mean, which is 0 where all are.
        known: Logits from here on are padding and have no probability; by default there is none.
        rows: By default 1024 on a CPU and 8192 on a GPU.

    >>> uniform, targets = torch.zeros(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64)
    >>> round(linear_cross_entropy(uniform, torch.ones(3, 4), targets).item(), 4)  # log 3
    1.0986
    """
    rows = rows or (CUDA_ROWS if x.is_cuda else ROWS)
    known = weight.shape[0] if known is None else known
    inputs = x.flatten(0, 1), weight, bias, targets.flatten(), ignored, known, rows
    learning = any(tensor is not None and tensor.requires_grad for tensor in (x, weight, bias))
    differentiated = torch.is_grad_enabled() and learning
    total = _SummedCrossEntropy.apply(*inputs) if differentiated else _summed_cross_entropy(*inputs)
    return total / (targets != ignored).sum().clamp(min=1)


class _SummedCrossEntropy(torch.autograd.Function):
    """The summed loss, whose backward only scales the gradients that its forward has made."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Float[Tensor, ""]:
        x, weight, bias, targets, ignored, known, rows = inputs
        losses, dx = [], []
        dweight, dbias = (_sums(tensor) for tensor in (weight, bias))
        for some, wanted in zip(x.split(rows), targets.split(rows), strict=True):
            logits = F.linear(some, weight, bias)  # in the dtype that autocast asks for
            log_p = _log_softmax(logits, known)  # [R, V]
            losses.append(_loss(log_p, wanted, ignored))
            dlogits = _gradient(log_p, wanted, ignored).to(logits.dtype)
            dx.append(dlogits @ weight)
            dweight += dlogits.T @ some
            if dbias is not None:
                dbias += dlogits.sum(0, dtype=dbias.dtype)
        ctx.save_for_backward(torch.cat(dx), dweight, dbias)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("linear_cross_entropy has no gradients of gradients; leave create_graph out")
        made = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        dx, dweight, dbias = (
            None if gradient is None else (gradient.to(grads[0].dtype) * grads[0]).to(dtype) for gradient, dtype in made
        )
        return dx, dweight, dbias, None, None, None, None


def _sums(tensor: Tensor | None) -> Tensor | None:
    """Where the gradient of a parameter is added up, in at least float32."""
    return (
        tensor if tensor is None else torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    )


def _summed_cross_entropy(
    x: Float[Tensor, "R E"], weight: Float[Tensor, "V E"], bias: Float[Tensor, " V"] | None,
    targets: Int64[Tensor, " R"], ignored: int, known: int, rows: int,
) -> Float[Tensor, ""]:  # fmt: skip
    parts = zip(x.split(rows), targets.split(rows), strict=True)
    losses = [_loss(_log_softmax(F.linear(some, weight, bias), known), wanted, ignored) for some, wanted in parts]
    return torch.stack(losses).sum()


def _log_softmax(logits: Float[Tensor, "R V"], known: int) -> Float[Tensor, "R V"]:
    """In at least float32, and minus infinity from `known` on."""
    if known < logits.shape[1]:
        logits = logits.masked_fill(_tokens(logits) >= known, -torch.inf)
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _loss(log_p: Float[Tensor, "R V"], targets: Int64[Tensor, " R"], ignored: int) -> Float[Tensor, ""]:
    return F.nll_loss(log_p, targets, ignore_index=ignored, reduction="sum")


def _gradient(log_p: Float[Tensor, "R V"], targets: Int64[Tensor, " R"], ignored: int) -> Float[Tensor, "R V"]:
    """Of the summed loss with respect to the logits; `log_p` is overwritten."""
    targets = targets[:, None]
    p = log_p.exp_().add_(_tokens(log_p) == targets, alpha=-1)
    return p.masked_fill_(targets == ignored, 0.0)


def _tokens(logits: Float[Tensor, "R V"]) -> Int64[Tensor, " V"]:
    return torch.arange(logits.shape[1], device=logits.device)
