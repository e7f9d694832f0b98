"""Where the tokens of a call stand in their sequences, and the rotation of queries and keys by it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..config.rotary import HALVES, RotaryConfig
from .surroundings import Surroundings


def positions(tokens: int, cache: Surroundings | None, device: torch.device) -> Int64[Tensor, "*B N"]:
    """Positions of the next `tokens` tokens, counted from the start of what each belongs to.

    >>> positions(3, None, torch.device("cpu")).tolist()
    [0, 1, 2]
    """
    return torch.arange(tokens, device=device) if cache is None else cache.positions(tokens, device)


def rotated(
    x: Float[Tensor, "B H N D"], at: Int64[Tensor, "*B N"], rotary: RotaryConfig = HALVES
) -> Float[Tensor, "B H N D"]:
    """Turns feature i together with feature i + D/2 by the angle `position / 10000^(2i/D)` (RoPE, arXiv 2104.09864).

    The product of a query and a key so turned depends on their distance and not on where they stand, so a model
    has no table that ends. Angles and products are taken in at least float32. `rotary` has other rates, or turns
    neighbours together: features 2i and 2i + 1, which stay where they are.

    >>> x = torch.ones(1, 1, 2, 2)
    >>> rotated(x, torch.tensor([0, 1]))[0, 0, 0].tolist()  # nothing turns at position 0
    [1.0, 1.0]
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    angles = (at[..., None].to(dtype) * rates(x.shape[-1], rotary, dtype, x.device)).unsqueeze(-3)  # [*B, 1, N, D/2]
    cos, sin = angles.cos(), angles.sin()
    if rotary.yarn is not None:
        cos, sin = cos * rotary.yarn.length_factor, sin * rotary.yarn.length_factor
    first, second = x.to(dtype).unflatten(-1, (-1, 2) if rotary.interleaved else (2, -1)).unbind(_axis(rotary))
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, _axis(rotary)).flatten(-2).to(x.dtype)


def rates(width: int, rotary: RotaryConfig, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " P"]:
    """Radians a token that each pair of `width` features turns by.

    >>> rates(4, RotaryConfig(theta=100.0), torch.float64, torch.device("cpu")).tolist()
    [1.0, 0.1]
    """
    pairs = torch.arange(width // 2, device=device, dtype=dtype)
    plain = rotary.theta ** (-pairs / (width // 2))
    if (yarn := rotary.yarn) is None:
        return plain
    length = yarn.original_max_position_embeddings
    first, last = (_pair_of(turns, width, rotary.theta, length) for turns in (yarn.beta_fast, yarn.beta_slow))
    first, last = max(math.floor(first), 0), min(math.ceil(last), width - 1)
    slow = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)  # 0.001: a step where the ramp has no length
    return plain * (1 - slow) + plain / yarn.factor * slow


def _pair_of(turns: float, width: int, theta: float, length: int) -> float:
    """Which pair, counted with fractions, makes so many turns in a text of this length."""
    return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _axis(rotary: RotaryConfig) -> int:
    """Where the two of a pair lie, of features as [D/2, 2] or [2, D/2]."""
    return -1 if rotary.interleaved else -2
