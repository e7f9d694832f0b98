"""Which problems the portable GPU kernels take, and how a plan becomes launches.

The blocks of a head run make one launch with one online softmax, and so do its spans whose queries stand as they are.
Spans that take queries in another order are launches of their own. Each continues from what the ones before have left.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ...plan import Plan
from ..devices import capability
from ..head_runs import head_runs
from ..layout import empty_beside
from ..problem import Problem, Saved, Softmax
from ..sinks import sink_gradient
from ..spans import without_span
from .configs import widest

OLDEST = (8, 0)


class Triton:
    """Runs bands, columns, rows and blocks on any GPU that Triton compiles for, in float32, bfloat16 and float16."""

    name = "triton"

    def refuses(self, problem: Problem) -> str | None:
        """The first thing that these kernels do not do."""
        if problem.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"inputs are {problem.dtype}; it computes float32, bfloat16 and float16"
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        if max(problem.width, problem.value_width) > (most := widest(problem.dtype)):
            widths = f"{problem.width} and {problem.value_width}"
            return f"heads are {widths} wide; it computes {most} at most in {problem.dtype}"
        if problem.lengths:
            return "it reads no lengths from the device"
        return without_gpu(problem.device) or without_span(problem.plan, blocks=True)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Backend` says."""
        from .launches import Launches

        runs = list(head_runs(plan, q.shape[1] // k.shape[1]))
        works = [Launches(run, plan, softmax, q, k, v) for run in runs]
        several = any(work.launches > 1 for work in works)
        out = _empty(q, v.shape[-1], several)
        lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        with on(q.device):
            for run, work in zip(runs, works, strict=True):
                heads = run.queries
                work.forward(out[:, heads], lse[:, heads], None if sinks is None else sinks[heads])
        return out.to(q.dtype), lse

    def backward(
        self, saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(dq, dk, dv, gradient of the sinks), as `Backend` says."""
        from .launches import Gradients, Launches

        q, k, v = saved.q, saved.k, saved.v
        runs = list(head_runs(plan, q.shape[1] // k.shape[1]))
        works = [Launches(run, plan, softmax, q, k, v) for run in runs]
        several = any(work.launches > 1 for work in works)
        several_keys = not all(run.fresh for run in runs) or any(work.key_launches > 1 for work in works)
        dq = _empty(q, q.shape[-1], several)
        dk, dv = (_empty(x, x.shape[-1], several_keys) for x in (k, v))
        deltas = torch.empty_like(saved.lse)
        with on(q.device):
            for run, work in zip(runs, works, strict=True):
                heads = run.queries
                of_lse = None if grad_lse is None else grad_lse[:, heads]
                given = saved.out[:, heads], saved.lse[:, heads], grad_out[:, heads], of_lse, deltas[:, heads]
                come = Gradients(*given)
                work.backward_queries(come, dq[:, heads])
                work.backward_keys(come, dk[:, run.keys], dv[:, run.keys], fresh=run.fresh)
        dsinks = sink_gradient(saved, grad_out, grad_lse)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), dsinks


TRITON = Triton()


def _empty(x: Tensor, width: int, several: bool) -> Tensor:
    """A result beside `x`; in float32 where several launches add to it, which then is rounded once, at the end."""
    made = empty_beside(x, width)
    return torch.empty_like(made, dtype=torch.float32) if several else made


def on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, whatever the tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def without_gpu(device: torch.device) -> str | None:
    """Why kernels cannot run on the device, or None where they can."""
    if device.type == "cuda":
        found = capability(device)
        if found is not None and found < OLDEST:
            return f"the GPU has compute capability {found[0]}.{found[1]}; Triton needs 8.0 or later"
        return None
    if device.type == "cpu" and _interpreting():
        return None
    return f"tensors are on {device}; it needs a CUDA or ROCm GPU (or Triton's interpreter)"


@lru_cache(maxsize=64)
def shared_memory(device: torch.device) -> int:
    """Bytes of it that a program may have on a GPU."""
    from triton.runtime.driver import driver

    return driver.active.utils.get_device_properties(device.index)["max_shared_mem"]


def _interpreting() -> bool:
    from triton import knobs

    return knobs.runtime.interpret
