"""Hopper's scores of an index."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import multiprocessors
from ..top_keys import Indexed
from .requirements import without_hopper

WIDTHS, HEADS = (64, 128), (4, 8, 16, 32, 64)
DTYPES = (torch.float8_e4m3fn, torch.bfloat16, torch.float16)


class HopperScores:
    """Scores in float32, of bfloat16, float16 and eight bits, on GPUs of compute capability 9.0."""

    most_scores = 2**28
    """One gigabyte."""

    def refuses(self, index: Indexed) -> str | None:
        """The first thing that these kernels do not do."""
        (_, heads, _, width), dtype = index.q.shape, index.q.dtype
        missing = without_hopper(index.q.device)
        if missing is not None:
            return missing
        if dtype not in DTYPES:
            return f"the index is {dtype}; it computes bfloat16, float16 and float8_e4m3fn"
        if width not in WIDTHS:
            return f"the index is {width} wide; it takes {WIDTHS[0]} and {WIDTHS[1]}"
        if heads not in HEADS:
            return f"the index has {heads} heads; it takes {', '.join(map(str, HEADS))}"
        return None

    def together(self, index: Indexed) -> int:
        """Those of one tile for each multiprocessor."""
        from .index_scores import queries_together  # Triton may be missing where it refuses

        return queries_together(index.q.shape[1]) * multiprocessors(index.q.device)

    def score(self, index: Indexed) -> Tensor:
        """[B, Q, K], as `Scorer` says."""
        from .index_scores import score  # Triton may be missing where it refuses

        return score(index)


HOPPER_SCORES = HopperScores()
