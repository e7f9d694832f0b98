"""What `kernels/hopper/columns.py` does, in PyTorch: the tests' reference, and its stand-in where no kernel can run."""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def gathered(k: Tensor, v: Tensor, keys: Tensor) -> Pair:
    return k.index_select(2, keys), v.index_select(2, keys)


def write_sums(parts: Pair, dk: Tensor, dv: Tensor, keys: Tensor | None, outside: Tensor | None) -> None:
    for x, part in zip((dk, dv), parts, strict=True):
        if outside is not None:
            x[:, :, outside] = 0.0
        x[:, :, _rows(keys)] = _sum(part, keys).to(x.dtype)


def add_sums(parts: Pair, dk: Tensor, dv: Tensor, keys: Tensor | None) -> None:
    for x, part in zip((dk, dv), parts, strict=True):
        x[:, :, _rows(keys)] = (x[:, :, _rows(keys)].float() + _sum(part, keys)).to(x.dtype)


def _rows(keys: Tensor | None) -> slice | Tensor:
    return slice(None) if keys is None else keys


def _sum(parts: Tensor, keys: Tensor | None) -> Tensor:
    """One part after the other, and in each one copy of the keys after the other."""
    count = parts.shape[3] if keys is None else len(keys)
    total = torch.zeros_like(parts[0, :, :, :count])
    for part in parts:
        for copy in part.split(count, 2) if count else ():
            total += copy
    return total
