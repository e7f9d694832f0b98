"""`draw_buckets`: the buckets that vectors fall into, by a hash that is drawn now."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..ops import lsh as _operators  # noqa: F401  registers the operator
from ..selectors.lsh import LSH


@torch.no_grad()
def draw_buckets(
    x: Float[Tensor, "B H N D"], lsh: LSH, *, generator: torch.Generator | None = None
) -> Int64[Tensor, "B H R N"]:
    """The bucket of each vector in each round, by rotations drawn in the dtype of `x`: `lsh.hash` in one launch.

    >>> draw_buckets(torch.randn(1, 2, 64, 8), LSH.paper(rounds=3, chunk=16)).shape
    torch.Size([1, 2, 3, 64])
    """
    _, heads, length, width = x.shape
    rotations = lsh.rotations(heads, width, length, device=x.device, dtype=x.dtype, generator=generator)
    return torch.ops.gossamer.lsh_hash(x, rotations, lsh.bucket_counts(length))
