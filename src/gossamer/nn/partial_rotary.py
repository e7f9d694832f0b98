"""Rotation by position of some features of a head, while the others stay as they are."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..config.rotary import RotaryConfig
from ..patterns.base import require_integer
from .positions import rotated


def turned_first(
    x: Float[Tensor, "B H N D"], at: Int64[Tensor, " N"], rotary: RotaryConfig | None, features: int
) -> Float[Tensor, "B H N D"]:
    """`x` with its first `features` turned by the positions; as it is where `rotary` is None.

    >>> x = torch.ones(1, 1, 2, 4)
    >>> turned_first(x, torch.tensor([0, 7]), RotaryConfig(), 2)[0, 0, :, 2:].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    if rotary is None or not features:
        return x
    return torch.cat([rotated(x[..., :features], at, rotary), x[..., features:]], -1)


def turned_last(
    x: Float[Tensor, "B H N D"], at: Int64[Tensor, " N"], rotary: RotaryConfig, features: int
) -> Float[Tensor, "B H N D"]:
    """`x` with its last `features` turned by the positions. Negative positions turn them back.

    >>> x, at = torch.randn(1, 1, 3, 4, dtype=torch.float64), torch.tensor([0, 7, 9])
    >>> back = turned_last(turned_last(x, at, RotaryConfig(), 2), -at, RotaryConfig(), 2)
    >>> torch.allclose(back, x)
    True
    """
    if not features:
        return x
    return torch.cat([x[..., :-features], rotated(x[..., -features:], at, rotary)], -1)


def require_turned(owner: str, features: int, width: int) -> int:
    """`features`, or an error that names it where they are odd or more than the width has."""
    if require_integer(owner, "rotary_width", features, least=0) % 2 or features > width:
        raise ValueError(f"{owner}: rotary_width is {features}; give an even number of at most {width}")
    return features
