"""Persistent launches: as many programs as run at once, each taking its share of the items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..devices import multiprocessors
from .configs import ENTRY_REGISTERS

CACHED = 24 << 20
"""Bytes that items at work at the same time sweep over together, in an L2 cache of 50 MB."""


def heads_cached(*swept: Tensor) -> int:
    """How many heads of what is swept over, [B, H, N, width] each, the cache holds; at least one."""
    return max(1, CACHED // sum(x[0, 0].numel() * x.element_size() for x in swept))


def launch(
    kernel: Any,
    items: int,
    device: torch.device,
    arguments: Sequence[Any],
    constants: Sequence[Any],
    consumers: int = 2,
) -> None:
    """Runs `kernel(*arguments, *constants)` as a program for each multiprocessor, or item if these are fewer."""
    grid, registers = (min(items, multiprocessors(device)),), ENTRY_REGISTERS[consumers]
    kernel[grid](*arguments, *constants, num_warps=4, maxnreg=registers)
