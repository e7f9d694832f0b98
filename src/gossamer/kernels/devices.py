"""What backends ask of a CUDA device, once for each; numbers on their way there, and tables that are made there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Table = TypeVar("Table")

NO_CHANGE = nullcontext()


@lru_cache(maxsize=64)
def capability(device: torch.device) -> tuple[int, int] | None:
    """NVIDIA's compute capability, or None where the device is none of NVIDIA's."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def made_current(device: torch.device) -> AbstractContextManager[object]:
    """A context in which the device, of which there are tensors, is the current one; it is changed where it is not."""
    # As torch.cuda.current_device, less its look whether CUDA is ready: this is on the way of every launch.
    here = device.index is not None and torch._C._cuda_getDevice() == device.index
    return NO_CHANGE if here else torch.cuda.device(device)


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def int32_on(device: torch.device, numbers: np.ndarray) -> Tensor:
    """The numbers as int32, dense, and there when this returns: whatever stream reads them, it need not wait.

    NumPy may leave what it picks out of rows lying by columns.
    """
    return torch.from_numpy(numbers.astype(np.int32, order="C")).to(device)


def finished(table: Table, device: torch.device) -> Table:
    """The table, when the device has made it: who keeps it gives it to other streams too, which wait for nothing."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return table
