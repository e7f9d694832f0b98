"""Vectors in eight bits, and the rotation that makes them fit: what DeepSeek's indexer does to be quick.

DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556): queries and keys are turned by a Hadamard matrix, which spreads a large
feature over all, and rounded to e4m3, each vector with a scale of its own.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["as given", "fp8", "fp8 ue8m0"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

LARGEST = 448.0
"""Of e4m3, which has neither infinity nor anything above."""

LEAST = 1e-4
"""A vector whose largest feature is smaller is not blown up to the full range."""


def quantized(x: Float[Tensor, "*B D"], precision: Precision = "fp8") -> tuple[Tensor, Tensor]:
    """(values in float8_e4m3fn, scale): `values · scale` is the vector, each feature rounded to 4 bits.

    The largest feature of a vector becomes 448. With "fp8 ue8m0" scales are rounded up to a power of two, which
    multiplies without rounding. Scales are float32, or float64 of float64. What is not finite becomes NaN.

    >>> values, scale = quantized(torch.tensor([1.0, -2.0, 0.5]))
    >>> values.dtype, (values.float() * scale).tolist()
    (torch.float8_e4m3fn, [1.0, -2.0, 0.5])
    >>> quantized(torch.tensor([1.0, -2.0, 0.5]), "fp8 ue8m0")[1].item() == 2**-7
    True
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    greatest = wide.abs().amax(-1).clamp(min=LEAST)
    scale = greatest / greatest.new_full((), LARGEST)  # by a number a GPU would multiply with its rounded inverse
    if precision == "fp8 ue8m0":
        mantissa = torch.frexp(scale).mantissa
        scale = torch.where(mantissa == 0.5, scale, scale / mantissa)
    return (wide / scale[..., None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def hadamard(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """The vectors times a Hadamard matrix, divided by the root of the width: products of two so turned are as before.

    In at least float32, and rounded once. Twice is the vector itself.

    >>> hadamard(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist()
    [0.5, 0.5, 0.5, 0.5]

    Raises:
        ValueError: The width is no power of two.
    """
    width = x.shape[-1]
    if width < 1 or width & (width - 1):
        raise ValueError(f"x is {width} wide; a Hadamard matrix takes a power of two")
    turned = x.to(torch.promote_types(x.dtype, torch.float32))
    for level in range(int(math.log2(width))):
        pairs = turned.unflatten(-1, (-1, 2, 2**level))
        first, second = pairs.unbind(-2)
        turned = torch.stack((first + second, first - second), -2).flatten(-3)
    return (turned * width**-0.5).to(x.dtype)
