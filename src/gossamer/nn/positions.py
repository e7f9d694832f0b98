"""Where the tokens of a call stand in their sequences, and the rotation of queries and keys by it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .cache import KVCache

BASE = 10_000.0


def positions(tokens: int, cache: KVCache | None, device: torch.device) -> Int64[Tensor, "*B N"]:
    """Positions of the next `tokens` tokens, counted from each sequence's first one that is no padding.

    >>> positions(3, None, torch.device("cpu")).tolist()
    [0, 1, 2]
    """
    past = 0 if cache is None else cache.length
    counted = torch.arange(past, past + tokens, device=device)
    if cache is None or cache.padding is None:
        return counted
    before = torch.tensor(cache.padding, device=device)
    return (counted - before[:, None]).clamp(min=0)  # [B, N]


def rotated(x: Float[Tensor, "B H N D"], at: Int64[Tensor, "*B N"]) -> Float[Tensor, "B H N D"]:
    """Turns feature i together with feature i + D/2 by the angle `position / 10000^(2i/D)` (RoPE, arXiv 2104.09864).

    The product of a query and a key so turned depends on their distance and not on where they stand, so a model
    has no table that ends. Angles and products are taken in at least float32.

    >>> x = torch.ones(1, 1, 2, 2)
    >>> rotated(x, torch.tensor([0, 1]))[0, 0, 0].tolist()  # nothing turns at position 0
    [1.0, 1.0]
    """
    dtype, half = torch.promote_types(x.dtype, torch.float32), x.shape[-1] // 2
    rates = BASE ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angles = (at[..., None].to(dtype) * rates).unsqueeze(-3)  # [*B, 1, N, D/2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
