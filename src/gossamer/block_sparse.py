"""`attend_blocks`: softmax attention over the blocks of pairs that a layout, made on the device at run time, shows."""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .inputs import autocast, check_attention, check_backend, check_kinds, check_scale, check_within
from .ops import blocks as _operators  # noqa: F401  registers the operator

BLOCKS = (16, 32, 64, 128)


@overload
def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, layout: Tensor, *, block: int,
    scale: float | None = ..., return_lse: Literal[False] = ..., within: Tensor | None = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, layout: Tensor, *, block: int,
    scale: float | None = ..., return_lse: Literal[True], within: Tensor | None = ..., backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attend_blocks(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K Dv"],
    layout: Bool[Tensor, "#B #H R C"],
    *,
    block: int,
    scale: float | None = None,
    return_lse: bool = False,
    within: Int[Tensor, "B 2"] | None = None,
    backend: str | None = None,
) -> Float[Tensor, "B H Q Dv"] | tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]:
    """Softmax attention in which query `i` sees key `j` where `layout[b, h, i // block, j // block]`, and no others.

    The layout may be chosen by a model while it runs: it is read on the device alone, and forward and backward work
    without waiting for it. Time follows the blocks that are visible. A layout that is known beforehand is the pattern
    `Blocks`, whose plan is made once. G divides H: each key head serves H/G query heads. Differentiable in q, k and v;
    the same inputs give the same bits. A query that sees nothing gives zeros and log-sum-exp minus infinity.

    >>> q = k = v = torch.randn(1, 2, 48, 8)
    >>> diagonal = torch.eye(3, dtype=torch.bool)[None, None]
    >>> out = attend_blocks(q, k, v, diagonal, block=16)
    >>> first = torch.nn.functional.scaled_dot_product_attention(*(x[:, :, :16] for x in (q, k, v)))
    >>> torch.allclose(out[:, :, :16], first, atol=1e-5)
    True

    Args:
        layout: bool [B or 1, H or 1, Q/block, K/block], rounded up, on the device of q. What an axis of length 1 says
            holds for all.
        block: Edge of a block: 16, 32, 64 or 128. Large blocks are fast.
        scale: Factor on the scores; 1/sqrt(D) by default.
        return_lse: Also return the natural log-sum-exp of the scores, float32, or float64 for float64; it carries
            gradients.
        within: Where each sequence lies in its row, int32 [B, 2] on the device of q: keys before `within[b, 0]`
            and from `within[b, 1]` on do not exist, and queries there see nothing. The last query stands at the last
            key.
        backend: Name of the backend to use; by default the first that accepts the problem.

    Raises:
        ValueError: Shapes, dtypes, devices or settings that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.
    """
    q, k, v = autocast(q, k, v)
    check_kinds({"q": q, "k": k, "v": v, "layout": layout}, {"within": within})
    check_attention(q, k, v)
    _check_layout(layout, block, q, k)
    if within is not None:
        check_within(within, q)
    check_scale(scale)
    check_backend(backend)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out, lse = torch.ops.gossamer.attend_blocks(q, k, v, layout, within, block, scale, backend)
    return (out, lse) if return_lse else out


def _check_layout(layout: Tensor, block: int, q: Tensor, k: Tensor) -> None:
    if block not in BLOCKS or isinstance(block, bool):
        raise ValueError(f"block is {block!r}; give one of {', '.join(map(str, BLOCKS))}")
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    rows, columns = -(-queries // block), -(-keys // block)
    fits = layout.ndim == 4 and layout.shape[2:] == (rows, columns)
    fits = fits and layout.shape[0] in (1, batch) and layout.shape[1] in (1, heads)
    if not fits or layout.dtype != torch.bool or layout.device != q.device:
        raise ValueError(
            f"layout is {layout.dtype} of shape {tuple(layout.shape)} on {layout.device}; give bool [{batch} or 1, "
            f"{heads} or 1, {rows}, {columns}], a row for each {block} of {queries} queries and a column for each of "
            f"{keys} keys, on {q.device}"
        )
