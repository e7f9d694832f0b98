"""`attend_runs`: softmax attention in which each query sees a run of keys that is made on the device at run time."""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .inputs import autocast, check_attention, check_backend, check_kinds, check_scale
from .ops import runs as _operators  # noqa: F401  registers the operator


@overload
def attend_runs(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor, stop: Tensor, *,
    scale: float | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend_runs(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor, stop: Tensor, *,
    scale: float | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attend_runs(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K Dv"],
    start: Int[Tensor, "#B Q"],
    stop: Int[Tensor, "#B Q"],
    *,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "B H Q Dv"] | tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]:
    """Softmax attention in which query i of sequence b sees keys `start[b, i] … stop[b, i] - 1`, and no others.

    Time follows the keys that are seen, and memory the lengths. What has been sorted becomes such runs: buckets of a
    hash, chunks, documents. G divides H: each key head serves H/G query heads. Differentiable in q, k and v; the same
    inputs give the same bits.

    >>> q = k = v = torch.randn(1, 2, 6, 8)
    >>> start = torch.tensor([[0, 0, 0, 3, 3, 3]], dtype=torch.int32)  # two chunks of three
    >>> out = attend_runs(q, k, v, start, start + 3)
    >>> torch.allclose(out[:, :, :3], attend_runs(*(x[:, :, :3] for x in (q, k, v)), start[:, :3], start[:, :3] + 3))
    True

    Args:
        start: int32 [B, Q] on the device of q, or [1, Q] for runs that all sequences share. It never falls from a
            query to the next, and lies in 0 … K.
        stop: The same, and nowhere below `start`. Where both are equal, the query sees nothing: it gives zeros and
            log-sum-exp minus infinity. GPU kernels read both on the device alone, and nobody checks what they hold:
            runs that fall give undefined numbers for the queries around.
        scale: Factor on the scores; 1/sqrt(D) by default.
        return_lse: Also return the natural log-sum-exp of the scores, float32, or float64 for float64; it carries
            gradients.
        backend: Name of the backend to use; by default the first that accepts the problem.

    Raises:
        ValueError: Shapes, dtypes, devices or settings that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.
    """
    q, k, v = autocast(q, k, v)
    check_kinds({"q": q, "k": k, "v": v, "start": start, "stop": stop})
    check_attention(q, k, v)
    _check_runs(start, stop, q)
    check_scale(scale)
    check_backend(backend)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out, lse = torch.ops.gossamer.attend_runs(q, k, v, start, stop, scale, backend)
    return (out, lse) if return_lse else out


def _check_runs(start: Tensor, stop: Tensor, q: Tensor) -> None:
    batch, _, queries, _ = q.shape
    for name, x in (("start", start), ("stop", stop)):
        if x.shape not in ((batch, queries), (1, queries)) or x.device != q.device or x.dtype != torch.int32:
            raise ValueError(
                f"{name} is {x.dtype} of shape {tuple(x.shape)} on {x.device}; give int32 [{batch}, {queries}], or "
                f"[1, {queries}] for all sequences alike, on {q.device}"
            )
