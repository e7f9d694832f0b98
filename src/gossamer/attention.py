"""`attend`: softmax attention over the pairs that a pattern allows. What most people call."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from . import ops  # noqa: F401  (registers the operators)
from .patterns.base import Pattern
from .patterns.parse import parse
from .plan import shortened


@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *,
    scale: float | None = ..., dropout: float = ..., sinks: Tensor | None = ..., softcap: float | None = ...,
    return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *,
    scale: float | None = ..., dropout: float = ..., sinks: Tensor | None = ..., softcap: float | None = ...,
    return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attend(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K Dv"],
    pattern: Pattern,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    sinks: Float[Tensor, " H"] | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "B H Q Dv"] | tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]:
    """Softmax attention over the pairs that `pattern` allows, and over no others.

    A query that may see nothing returns zeros and log-sum-exp minus infinity. Time and memory follow the plan of
    the pattern, never n×n. The last query stands at the last key, so decoding needs no offset. G divides H: each
    key head serves H/G query heads.

    Args:
        scale: Factor on the scores; 1/sqrt(D) by default.
        dropout: Probability that a pair is dropped, the others scaled up; drawn from torch's generator at each call.
        sinks: One logit a head that joins the softmax's denominator only; receives gradients.
        softcap: Scores become `softcap · tanh(score / softcap)`.
        return_lse: Also return the natural log-sum-exp of the scores (sinks included), float32, or float64 for
            float64; it carries gradients.
        backend: Name of the backend to use; by default the first that accepts the problem.

    Raises:
        ValueError: Shapes, dtypes, devices or settings that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.
    """
    q, k, v = _autocast(q, k, v)
    _check_tensors(q, k, v, sinks)
    _check_settings(pattern, scale, dropout, softcap)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    seed = torch.randint(2**62, (1,), device=q.device) if dropout > 0 else None
    out, lse = torch.ops.gossamer.attend(
        q, k, v, sinks, seed, pattern.spec, scale, float(softcap or 0.0), float(dropout), backend
    )
    return (out, lse) if return_lse else out


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast asks for on their device, as scaled_dot_product_attention does."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta tensors know no autocast
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; give [batch, heads, length, width]")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}, but q is {q.dtype} on {q.device}; "
                f"convert with {name}.to(q.device, q.dtype)"
            )
    if k.shape[0] != q.shape[0] or v.shape[:3] != k.shape[:3] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: all share the batch, "
            f"q and k the width, k and v the heads and the length"
        )
    if q.shape[3] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; give a width of at least 1")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1] or q.shape[1] == 0:
        raise ValueError(f"q has {q.shape[1]} heads and k has {k.shape[1]}; the key heads must divide the query heads")
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.device != q.device):
        raise ValueError(
            f"sinks has shape {tuple(sinks.shape)} on {sinks.device}; give one logit for each of the {q.shape[1]} "
            f"query heads, on {q.device}"
        )


def _check_settings(pattern: Pattern, scale: float | None, dropout: float, softcap: float | None) -> None:
    if not isinstance(pattern, Pattern):
        raise ValueError(f"pattern is {pattern!r}; give a gossamer pattern such as Causal() & Window(128)")
    if not torch.compiler.is_compiling() and parse(pattern.spec) != pattern:
        raise ValueError(
            f"pattern {shortened(pattern)} does not read back from its text as itself; "
            f"make its class a frozen dataclass whose name no other pattern has"
        )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; give a finite number, or None for 1/sqrt(width)")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}; give a probability of at least 0 and below 1")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap is {softcap}; give a positive number, or None for no cap")
