"""Heads are slices of a width: ways to look at one as the other, most of them without a copy."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from ..patterns.base import require_integer


def split(x: Float[Tensor, "B N E"], heads: int) -> Float[Tensor, "B H N D"]:
    """Each head's slice of the width."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merged(x: Float[Tensor, "B H N D"]) -> Float[Tensor, "B N E"]:
    """The heads side by side: `split` undone."""
    return x.transpose(1, 2).flatten(2)


def apart(rows: Float[Tensor, "B m E"], slices: Float[Tensor, "H E"]) -> Float[Tensor, "B Hm E"]:
    """Every row once for each head, with zeros in all other heads; `slices` has ones where each head is.

    One product with whole rows then does what each head does with its own slice, and no tensor of all positions is
    turned to have its heads in front, which for few rows would cost more than the zeros.
    """
    return (rows[:, None] * slices[:, None]).flatten(1, 2)


def together(rows: Float[Tensor, "B Hm E"], heads: int) -> Float[Tensor, "B m H D"]:
    """Of every row its own head's slice: the gradient of `apart`."""
    slices = rows.unflatten(1, (heads, -1)).unflatten(3, (heads, -1))  # [B, H, m, H, D]
    return slices.diagonal(dim1=1, dim2=3).mT


def require_sizes(owner: str, sizes: Mapping[str, object]) -> None:
    """Raises a ValueError for what is no positive integer."""
    for name, value in sizes.items():
        require_integer(owner, name, value, least=1)


def require_groups(owner: str, heads: int, key_heads: int) -> None:
    """Raises a ValueError where the query heads cannot share the key heads evenly."""
    if heads % key_heads:
        raise ValueError(
            f"{owner}: heads is {heads} and key_heads is {key_heads}; give key heads that divide the heads"
        )
