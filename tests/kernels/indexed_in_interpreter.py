"""Runs the checks of indexed attention over the Triton kernels, in Triton's interpreter, and prints what fails as JSON.

Float32 and float16 only: the interpreter multiplies bfloat16 tiles as if they were integers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from tests import indexed_checks as checks
from tests.indexed_checks import CASES, Case
from tests.kernels.interpreter import tell

BY_TRITON = partial(checks.check_definition, backend="triton")
SMALL = {"queries": 7, "batch": 1}
KEYED = {
    "blocks of a tile": Case(block=16, keys=150, chosen=4, causal=True, sinks=True, **SMALL),
    "blocks of several tiles, cut short": Case(block=80, keys=370, chosen=3, causal=True, **SMALL),
    "latents in blocks": Case(8, 1, keys=100, block=32, chosen=2, latent=True, width=24, value_width=16, **SMALL),
}

CHECKS = {
    name: partial(BY_TRITON, replace(case, batch=min(case.batch, 1 + (case.runs or 0) // 2)), torch.float32)
    for name, case in (CASES | KEYED).items()
    if not case.tidy and case.queries < 60
}


if __name__ == "__main__":
    tell(CHECKS)
