"""What is asked of tensors and settings before anything is computed, and the dtype that autocast wants tensors in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .patterns.base import Pattern


def check_kinds(tensors: Mapping[str, object], may_be_missing: Mapping[str, object] | None = None) -> None:
    """Raises a ValueError for what is no tensor; what may be missing may be None too."""
    missing = may_be_missing or {}
    for name, x in {**tensors, **missing}.items():
        if not isinstance(x, Tensor) and (x is not None or name not in missing):
            raise ValueError(f"{name} is a {type(x).__name__}; give a torch.Tensor")


def autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast asks for on their device, as scaled_dot_product_attention does."""
    if not torch._C._is_any_autocast_enabled():
        return q, k, v
    check_kinds({"q": q, "k": k, "v": v})
    device = q.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta tensors know no autocast
        return q, k, v
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in (q, k, v))


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises a ValueError where queries, keys and values do not fit one another."""
    dtype, device = q.dtype, q.device
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.is_nested or x.layout != torch.strided:
            layout, dense = ("nested", "to_padded_tensor(0.0)") if x.is_nested else (x.layout, "to_dense()")
            raise ValueError(f"{name} is {layout}; give a strided tensor: {name}.{dense}")
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; give [batch, heads, length, width]")
        if x.dtype != dtype or x.device != device:
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}, but q is {dtype} on {device}; "
                f"convert with {name}.to(q.device, q.dtype)"
            )
    (batch, heads, _, width), (k_batch, key_heads, keys, k_width), (*v_axes, _) = q.shape, k.shape, v.shape
    if k_batch != batch or v_axes != [k_batch, key_heads, keys] or k_width != width:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: all share the batch, "
            f"q and k the width, k and v the heads and the length"
        )
    if width == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; give a width of at least 1")
    if key_heads == 0 or heads % key_heads or heads == 0:
        raise ValueError(f"q has {heads} heads and k has {key_heads}; the key heads must divide the query heads")


def check_within(within: Tensor, q: Tensor) -> None:
    """Raises a ValueError for what is not where each sequence of the queries begins and ends."""
    if within.shape != (q.shape[0], 2) or within.device != q.device or within.dtype != torch.int32:
        raise ValueError(
            f"within is {within.dtype} of shape {tuple(within.shape)} on {within.device}; give int32 "
            f"[{q.shape[0]}, 2], the first position of each sequence and one more than its last, on {q.device}"
        )


def check_scale(scale: float | None) -> None:
    """Raises a ValueError for what is no finite number."""
    if scale is not None and not holds(lambda x: -math.inf < x < math.inf, scale):
        raise ValueError(f"scale is {scale!r}; give a finite number, or None for 1/sqrt(width)")


def check_backend(backend: str | None) -> None:
    """Raises a ValueError for what can be no backend's name."""
    if backend is not None and not isinstance(backend, str):
        raise ValueError(f"backend is {backend!r}; give a backend's name, or None to let Gossamer choose")


def check_settings(
    pattern: Pattern, scale: float | None, dropout: float, softcap: float | None, backend: str | None
) -> None:
    """Raises a ValueError for what is no pattern, or no setting that attention may have."""
    if not isinstance(pattern, Pattern):
        raise ValueError(f"pattern is {pattern!r}; give a gossamer pattern such as Causal() & Window(128)")
    check_scale(scale)
    if not holds(lambda x: 0.0 <= x < 1.0, dropout):
        raise ValueError(f"dropout is {dropout!r}; give a probability of at least 0 and below 1")
    if softcap is not None and not holds(lambda x: 0.0 < x < math.inf, softcap):
        raise ValueError(f"softcap is {softcap!r}; give a positive number, or None for no cap")
    check_backend(backend)


def holds(check: Callable[[float], bool], number: float) -> bool:
    """Whether it is a number of a float's size, of which the check holds.

    By arithmetic and comparisons alone: these a compiler can follow where the number is an argument of its graph.
    """
    try:
        return bool(check(number + 0.0))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
