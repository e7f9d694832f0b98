"""Persistent launches that cost the host little: Triton looks a kernel up once for each kind of arguments."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .configs import LAUNCH
from .descriptors import Tiles

MOST_KNOWN = 512
"""Kinds of launches remembered; beyond it all are forgotten, and Triton is asked again."""

KNOWN: dict[Hashable, Any] = {}


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """How many the device has: as many programs run at once."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(kernel: Any, items: int, device: torch.device, arguments: Sequence[Any], constants: Sequence[Any]) -> None:
    """Runs `kernel(*arguments, *constants)` as a program for each multiprocessor, or for each item if these are fewer.

    Asking Triton which compiled kernel fits takes longer than launching it. So what it answered is kept under
    everything that it looks at: constants, dtypes, alignment, and what it specialises integers for.
    """
    key = (id(kernel), device, *constants, *map(_kind, arguments))
    grid = (min(items, multiprocessors(device)), 1, 1)
    compiled = KNOWN.get(key)
    if compiled is not None:
        compiled[grid](*arguments, *constants)
        return
    compiled = kernel[grid](*arguments, *constants, **LAUNCH)
    if len(KNOWN) >= MOST_KNOWN:
        KNOWN.clear()
    if compiled is not None:  # nothing comes back where a test only compiles
        KNOWN[key] = compiled


def _kind(argument: Any) -> Hashable:
    """All that a compiled kernel depends on in an argument."""
    if isinstance(argument, Tiles):
        return argument.base.dtype, *argument.block_shape
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31
    return type(argument)
