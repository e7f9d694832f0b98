"""`top_keys`: for each query the keys that an index scores highest."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int32, Shaped
from torch import Tensor

from ..inputs import autocast, check_backend, check_kinds
from ..ops.top_keys import indexed, ready, road
from ..patterns.base import require_integer
from ..selectors.quantized import PRECISIONS, Precision

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def top_keys(
    q: Float[Tensor, "B J Q D"],
    k: Float[Tensor, "B K D"],
    weights: Float[Tensor, "B Q J"],
    count: int,
    *,
    relu: bool = True,
    causal: bool = True,
    visible: Shaped[Tensor, "B Q"] | None = None,
    precision: Precision = "as given",
    backend: str | None = None,
) -> Int32[Tensor, "B Q n"]:
    """For each query the `count` visible keys of largest score, exactly, in ascending order; -1 behind the last.

    The score of a key is `sum_j weights[j] · relu(q[j] · k)`, in float32, or in float64 of float64. Of equal scores
    the older keys are taken, so that the same inputs give the same keys at every call. A key whose score is NaN or
    minus infinity is never taken. A query that sees fewer keys than `count` gets them all. No gradient passes.
    Memory is that of a part of the queries' scores, never of all pairs.

    >>> q, k = torch.ones(1, 1, 3, 1), torch.tensor([[[2.0], [3.0], [1.0]]])
    >>> top_keys(q, k, torch.ones(1, 3, 1), 2)
    tensor([[[ 0, -1],
             [ 0,  1],
             [ 0,  1]]], dtype=torch.int32)

    DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556).

    Args:
        q: Of J index heads.
        k: One key for all heads.
        weights: Float32 (float64 beside float64), of any sign: what each head's product counts.
        relu: Whether products below zero count as zero.
        causal: A query sees no key behind its own position; the last query stands where the last key does.
        visible: int32 or int64: query i sees its first `visible[i]` keys alone, and fewer where it is causal.
        precision: "fp8" rounds each vector of q and k to e4m3 with a scale of its own, "fp8 ue8m0" with one that
            is a power of two; products are those of the rounded vectors, which Hopper's matrix instructions sum with
            fewer bits than float32 has.
        backend: "hopper", "triton" or "tiled"; None takes the first that accepts.

    Raises:
        ValueError: Shapes, dtypes, devices or settings do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.
    """
    check_kinds({"q": q, "k": k, "weights": weights}, {"visible": visible})
    check_backend(backend)
    count = require_integer("top_keys", "count", count, least=1)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; give one of: {', '.join(map(repr, PRECISIONS))}")
    q, k, _ = autocast(q, k, k)
    check_index(q, k, weights)
    _check_visible(visible, q)
    if not torch.compiler.is_compiling():  # says why not before anything is computed
        nothing = q[:0], k[:0], weights[:0]
        road(ready(indexed(*nothing, None, relu=relu, causal=causal, precision=precision), precision), backend)
    return torch.ops.gossamer.top_keys(q, k, weights, visible, count, bool(relu), bool(causal), precision, backend)


def check_index(q: Tensor, k: Tensor, weights: Tensor) -> None:
    """Raises a ValueError where queries, keys and weights of an index do not fit one another."""
    if q.ndim != 4 or k.ndim != 3 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[2]:
        raise ValueError(
            f"q is {list(q.shape)} and k {list(k.shape)}; give [batch, index heads, queries, width] and "
            f"[batch, keys, width]"
        )
    batch, heads, queries, width = q.shape
    if 0 in (heads, width):
        raise ValueError(f"q is {list(q.shape)}; give at least 1 index head and a width of at least 1")
    if q.dtype not in DTYPES or k.dtype != q.dtype or k.device != q.device:
        raise ValueError(
            f"q is {q.dtype} on {q.device} and k {k.dtype} on {k.device}; give both in one of "
            f"{', '.join(map(str, DTYPES))}, on one device"
        )
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    if weights.shape != (batch, queries, heads) or weights.dtype != wide or weights.device != q.device:
        raise ValueError(
            f"weights is {weights.dtype} {list(weights.shape)} on {weights.device}; give {wide} "
            f"[{batch}, {queries}, {heads}] on {q.device}"
        )


def _check_visible(visible: Tensor | None, q: Tensor) -> None:
    if visible is None:
        return
    shape, dtypes = (q.shape[0], q.shape[2]), (torch.int32, torch.int64)
    if visible.shape != shape or visible.dtype not in dtypes or visible.device != q.device:
        raise ValueError(
            f"visible is {visible.dtype} {list(visible.shape)} on {visible.device}; give int32 {list(shape)} on "
            f"{q.device}, how many keys each query may choose among"
        )
