"""Runs the checks of hashed attention over the Triton kernels, in Triton's interpreter, and prints what fails as JSON.

Float32 and float16 only: the interpreter multiplies bfloat16 tiles as if they were integers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from tests import hashed_checks as checks
from tests.hashed_checks import CASES
from tests.kernels.interpreter import tell

COVERED = "own buckets, repeated", "all buckets, once", "wraps"
"""Cases whose every line of a kernel is run by others too."""

BY_TRITON = partial(checks.check_definition, backend="triton")

CHECKS = {
    name: partial(BY_TRITON, replace(case, heads=1, batch=len(case.within or (0,))), torch.float32)
    for name, case in CASES.items()
    if name not in COVERED
} | {
    "float16": partial(BY_TRITON, replace(CASES["paper, short chunks"], heads=1, batch=1), torch.float16),
    "float16, alone": partial(BY_TRITON, replace(CASES["all alone"], heads=1, batch=1), torch.float16),
    "hash": partial(checks.check_hash, (6, 8), torch.float32),
    "hash by many columns": partial(checks.check_hash, (150, 1), torch.float16),
    "support": partial(checks.check_support, CASES["padded, trax"], dtype=torch.float32, backend="triton"),
    "chunks of several tiles": partial(
        BY_TRITON, replace(CASES["one bucket"], heads=1, batch=1, length=90, width=80), torch.float32
    ),
}


if __name__ == "__main__":
    tell(CHECKS)
