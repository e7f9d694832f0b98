"""What every kernel of this folder needs of the machine."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch

from ..devices import capability

TRITON = "3.6"
"""The release whose Gluon these kernels are written in; the language still moves from one to the next."""


def without_hopper(device: torch.device) -> str | None:
    """Why these kernels do not run on the device, or None where they do."""
    if capability(device) != (9, 0):
        return f"it needs a GPU of compute capability 9.0, and the tensors are on {device}"
    if find_spec("triton") is None:
        return f"it needs Triton {TRITON}; pip install 'triton=={TRITON}.*'"
    if not _triton_version().startswith(f"{TRITON}."):
        return f"it is written in Gluon as Triton {TRITON} has it, and this is Triton {_triton_version()}"
    return None


def without_half_precision(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels of this folder that are written for half precision do not run with such inputs, or None."""
    missing = without_hopper(device)
    if missing is None and dtype not in (torch.bfloat16, torch.float16):
        return f"inputs are {dtype}; it computes bfloat16 and float16"
    return missing


@lru_cache(maxsize=1)
def _triton_version() -> str:
    """Imported at the first call alone: Triton may be missing."""
    import triton

    return triton.__version__
