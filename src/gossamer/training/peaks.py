"""What a device could do at most, for what it does to be a share of."""

from __future__ import annotations

import torch

from .config import Precision

TERA = 1e12

_16_BIT_TF32_FP32 = {
    "GB200": (2500, 1250, 80),
    "B200": (2250, 1125, 75),
    "GH200": (989.4, 494.7, 66.9),
    "H200": (989.4, 494.7, 66.9),
    "H100 PCIe": (756.5, 378, 51.2),
    "H100 NVL": (835.5, 417.5, 60),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "L4": (121, 60, 30.3),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
}
"""Tera-operations a second by the makers' data sheets: dense products, sums in float32. The first name that is within
the device's own counts, so a longer name stands before a shorter one that is part of it."""


def peak(name: str, precision: Precision) -> float | None:
    """The most operations a second that a device of this name does, or None where no data sheet is known here.

    In fp32 it is that of the tensor cores where PyTorch may use them (TF32), else that of the other ones.

    >>> peak("NVIDIA H200", "bf16"), peak("NVIDIA H100 PCIe", "bf16"), peak("an abacus", "fp32")
    (989400000000000.0, 756500000000000.0, None)
    """
    for known, (half, tf32, fp32) in _16_BIT_TF32_FP32.items():
        if known in name:
            single = tf32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else fp32
            return TERA * (single if precision == "fp32" else half)
    return None


def peak_of(device: torch.device, precision: Precision) -> float | None:
    """`peak` of a device that is here; None of a CPU, whose speed its name does not tell."""
    return peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
