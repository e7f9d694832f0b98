"""The portable GPU road to the best keys: scores of some queries by one kernel, the choice among them by two."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor

from ...selectors.quantized import LARGEST, LEAST, Precision
from ..devices import capability
from ..top_keys import Indexed
from .backend import without_gpu
from .configs import WIDEST, index_config

MULTIPLIES_EIGHT_BITS = (8, 9)
"""Compute capability from which tensor cores multiply e4m3; before, its numbers are multiplied in float16, which has
them all."""


class TritonScores:
    """Scores in float32 of queries and keys in float32, bfloat16, float16 and e4m3."""

    most_scores = 2**27

    def refuses(self, index: Indexed) -> str | None:
        """The first thing that the kernel does not do."""
        dtype, (_, heads, _, width) = index.q.dtype, index.q.shape
        if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
            return f"queries are {dtype}; it scores float32, bfloat16, float16 and float8_e4m3fn"
        if index.weights.dtype != torch.float32:
            return f"weights are {index.weights.dtype}; it sums in float32"
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        if width > WIDEST:
            return f"heads are {width} wide; it scores {WIDEST} at most"
        most = index_config(dtype, width, heads).queries
        if heads > most:
            return f"there are {heads} heads; of this width and dtype it sums {most} at most"
        return without_gpu(index.q.device)

    def together(self, index: Indexed) -> int:
        """Any number."""
        return 1

    def score(self, index: Indexed) -> Tensor:
        """[B, Q, K], as `Scorer` says."""
        from .top_keys_scores import scores_of

        if index.q.dtype == torch.float8_e4m3fn and (capability(index.q.device) or (0, 0)) < MULTIPLIES_EIGHT_BITS:
            index = replace(index, q=index.q.to(torch.float16), k=index.k.to(torch.float16))
        return scores_of(index)


class TritonSelection:
    """The choice among float32 scores."""

    def select(self, scores: Tensor, visible: Tensor, count: int) -> Tensor:
        """int32 [R, count], as `Selector` says."""
        from .top_keys_select import select_top

        return select_top(scores, visible, count)


class TritonQuantization:
    """`quantized` in one launch."""

    def refuses(self, x: Tensor) -> str | None:
        """The first thing that the kernel does not do."""
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"vectors are {x.dtype}; it rounds float32, bfloat16 and float16"
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        if (capability(x.device) or (0, 0)) < MULTIPLIES_EIGHT_BITS:
            return f"it needs a GPU of compute capability 8.9 or later, and the tensors are on {x.device}"
        return None

    def quantize(self, x: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
        """As `quantized` does it, of [B, Q, D] or [B, J, Q, D]."""
        from .quantizing import quantize

        values, scales = quantize(x if x.dim() == 4 else x[:, None], LEAST, LARGEST, power_of_two="ue8m0" in precision)
        return values.view(x.shape), scales.view(x.shape[:-1])


TRITON_SCORES, TRITON_SELECTION, TRITON_QUANTIZATION = TritonScores(), TritonSelection(), TritonQuantization()
