"""PyTorch's own attention, for plans that leave nothing out but the future: no sparse kernel can do less there.

Forward alone. The fast backwards of flash and cuDNN add in the order in which blocks happen to finish, so that two
runs differ; everything here gives the same bits each time. Another backend's backward goes on from the log-sum-exp.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..plan import Band, Plan, Term
from .devices import capability
from .problem import Problem, Saved, Softmax, Unsupported

WIDEST_FLASH, WIDEST_CUDNN = 256, 128


class Dense:
    """Runs plans in which every head sees everything, or everything up to itself, forward, through flash or cuDNN."""

    name = "dense"

    def refuses(self, problem: Problem) -> str | None:
        """What makes the problem sparse, or what the operators of PyTorch do not do."""
        width = problem.width
        options = {
            "dropout": problem.dropout,
            "soft cap": problem.softcap,
            "learnable sinks": problem.has_sinks,
            "lengths": problem.lengths,
            "sequences within bounds": problem.within,
            "runs from the device": problem.runs,
            "blocks from the device": problem.block,
            "backward that repeats to the bit": problem.backward,
        }
        if problem.device.type != "cuda" or not torch.backends.cuda.is_flash_attention_available():
            return f"it is PyTorch's flash attention on CUDA; the inputs are on {problem.device}"
        if problem.dtype not in (torch.bfloat16, torch.float16):
            return f"inputs are {problem.dtype}; it computes bfloat16 and float16"
        if not problem.batch:
            return "the batch is empty"
        if _causal(problem.plan) is None:
            return "a sparse kernel does less: some query does not see everything, or everything up to itself"
        for option, asked in options.items():
            if asked:
                return f"it has no {option}"
        if width != problem.value_width or width % 8 or width > WIDEST_FLASH:
            return f"widths are {width} and {problem.value_width}; it takes one width, a multiple of 8 up to 256"
        return None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Backend` says."""
        q, k, v, causal = _aligned(q), _aligned(k), _aligned(v), bool(_causal(plan))
        if _has_cudnn(q):
            out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
                q, k, v, None, compute_log_sumexp=True, is_causal=causal, scale=softmax.scale
            )
        else:
            out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
                q, k, v, is_causal=causal, scale=softmax.scale
            )
        return out, lse.view(q.shape[:-1])

    def backward(
        self, saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Never picked: `refuses` says so of every backward."""
        raise Unsupported("dense attention has no gradients that repeat to the bit")


DENSE = Dense()


@lru_cache(maxsize=256)
def _causal(plan: Plan) -> bool | None:
    """Whether the future is all that the plan hides (True) or nothing is (False); None where it hides more."""
    kinds = {_kind(group.terms, plan) for group in plan.groups}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(terms: tuple[Term, ...], plan: Plan) -> bool | None:
    band = terms[0] if len(terms) == 1 else None
    if not isinstance(band, Band) or band.documents is not None or not band.offsets.dense:
        return None
    if band.offsets.high < plan.keys - 1:
        return None
    if band.offsets.low <= 1 - plan.queries:
        return False
    return True if band.offsets.low == 0 and plan.queries == plan.keys else None


def _has_cudnn(q: Tensor) -> bool:
    """Whether cuDNN takes tensors like `q`: it is the faster of the two from Hopper on."""
    return q.shape[-1] <= WIDEST_CUDNN and (capability(q.device) or (0, 0)) >= (9, 0)


def _aligned(x: Tensor) -> Tensor:
    """`x` with rows apart that start at multiples of 16 bytes, copied only where they do not."""
    rows = all(
        stride > 0 and stride % 8 == 0 for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1
    )
    aligned = x.stride(-1) == 1 and not x.data_ptr() % 16
    return x if aligned and rows else x.clone(memory_format=torch.contiguous_format)
