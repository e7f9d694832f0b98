"""`attend_hashed`: attention between the tokens that hashing has brought together."""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from ..inputs import autocast, check_backend, check_kinds
from ..kernels import Unsupported
from ..ops.lsh import road
from ..selectors.lsh import LSH
from ..selectors.rounds import sorted_rounds
from .runs import attend_by_runs, why_no_runs

__all__ = ["attend_hashed"]

RUNS = "runs"
"""The band kernels of `attend_runs`, after the permutation."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@overload
def attend_hashed(
    x: Tensor, v: Tensor, buckets: Tensor, lsh: LSH, *, within: Tensor | None = ..., most: int | None = ...,
    return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend_hashed(
    x: Tensor, v: Tensor, buckets: Tensor, lsh: LSH, *, within: Tensor | None = ..., most: int | None = ...,
    return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attend_hashed(
    x: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    buckets: Int64[Tensor, "B H R N"],
    lsh: LSH,
    *,
    within: Shaped[Tensor, "B 2"] | None = None,
    most: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of each vector of `x` to those that share its chunks in some round, and to no others.

    A vector is query and key at once; as a key it has length one. A token sees itself only where it sees nobody else.
    The rounds are as many as `buckets` has, whatever `lsh.rounds` says. No gradient passes through the buckets.
    Results are the same bits at every call.

    >>> lsh = LSH.trax(rounds=2, chunk=4, buckets=4)
    >>> x, v = torch.randn(2, 1, 3, 16, 8)
    >>> buckets = lsh.hash(x, lsh.rotations(3, 8, 16))
    >>> attend_hashed(x, v, buckets, lsh).shape
    torch.Size([1, 3, 16, 8])

    Args:
        buckets: From `lsh.hash`, or any numbers from 0 to 2³¹ - 2.
        within: int32 [B, 2]: sequence b is its tokens `within[b, 0] … within[b, 1] - 1` alone. Others are seen by
            nobody and see nothing: zeros, and minus infinity as the log-sum-exp.
        most: What every bucket number is below, if that is known: the sort is cheaper then.
        return_lse: Return (out, natural log-sum-exp [B, H, N]).
        backend: "triton" or "tiled", or "runs", which takes causal attention to one's own bucket; None takes the
            first that accepts.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit together.
        Unsupported: No backend accepts the problem; the message gives each one's reason.
    """
    check_kinds({"x": x, "v": v, "buckets": buckets}, {"within": within})
    check_backend(backend)
    x, v, _ = autocast(x, v, v)
    _check(x, v, buckets, within)
    scale = x.shape[-1] ** -0.5 if lsh.scale is None else lsh.scale
    if backend == RUNS:
        reason = why_no_runs(lsh, buckets.shape[2])
        if reason is not None:
            raise Unsupported(f"no backend accepts this problem\n  {RUNS}: {reason}")
        out, lse = attend_by_runs(x, v, buckets, lsh, most=most, within=within, scale=scale)
    else:
        if not torch.compiler.is_compiling():
            road(x, v, backend)  # says why not before anything is sorted
        chunks = lsh.chunks
        spans = {"own_bucket": not lsh.other_buckets, "once": not lsh.repeats and buckets.shape[2] > 1}
        with torch.no_grad():
            rounds = sorted_rounds(buckets, chunks, most=most, within=within, **spans)
        settings = chunks.size, chunks.before, chunks.after, chunks.edge, chunks.causal, scale, lsh.epsilon, backend
        out, lse = torch.ops.gossamer.lsh_attend(x, v, *rounds, *settings)
    return (out, lse) if return_lse else out


def _check(x: Tensor, v: Tensor, buckets: Tensor, within: Tensor | None) -> None:
    if x.dim() != 4 or v.dim() != 4 or x.shape[:3] != v.shape[:3]:
        raise ValueError(f"x is {list(x.shape)} and v {list(v.shape)}; give [B, H, N, D] and [B, H, N, Dv]")
    if x.dtype not in DTYPES or v.dtype != x.dtype:
        raise ValueError(f"x is {x.dtype} and v {v.dtype}; give both in one of {', '.join(map(str, DTYPES))}")
    batch, heads, length, _ = x.shape
    fits = buckets.dim() == 4 and buckets.shape[:2] == x.shape[:2] and buckets.shape[3] == length and buckets.shape[2]
    if not fits or buckets.dtype != torch.int64:
        wanted = f"int64 [{batch}, {heads}, rounds, {length}]"
        raise ValueError(f"buckets is {buckets.dtype} {list(buckets.shape)}; give {wanted}")
    if within is not None and (within.shape != (batch, 2) or within.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"within is {within.dtype} {list(within.shape)}; give int32 [{batch}, 2]")
    others = {"v": v, "buckets": buckets, "within": within}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; put them on one device")
