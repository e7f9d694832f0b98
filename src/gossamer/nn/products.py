"""Matrix products whose results are attention's scores: these are never rounded to half precision."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def wide_product(a: Float[Tensor, "B M K"], b: Float[Tensor, "B K N"]) -> Float[Tensor, "B M N"]:
    """`a @ b` in at least float32, whatever autocast asks for; it has no gradient of its own.

    A GPU multiplies numbers of half precision as they are, and adds up and gives float32.
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    if a.is_cuda and a.dtype != wide:
        return torch.bmm(a, b, out_dtype=wide)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(wide) @ b.to(wide)
