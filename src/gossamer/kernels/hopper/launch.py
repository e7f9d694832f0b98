"""Persistent launches: as many programs as run at once, each taking its share of the items."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from .configs import LAUNCH


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """How many the device has: as many programs run at once."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(kernel: Any, items: int, device: torch.device, arguments: Sequence[Any], constants: Sequence[Any]) -> None:
    """Runs `kernel(*arguments, *constants)` as a program for each multiprocessor, or item if these are fewer."""
    kernel[(min(items, multiprocessors(device)),)](*arguments, *constants, **LAUNCH)
