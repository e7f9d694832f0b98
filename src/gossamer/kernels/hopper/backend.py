"""Which problems the Hopper kernels take, and how a plan's groups of heads share the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from ...plan import Blocks, Plan
from ..devices import made_current
from ..layout import empty_beside, empty_results
from ..problem import Again, Problem, Saved, Softmax
from ..sinks import sink_gradient
from ..spans import without_span
from .operands import Inputs, Results
from .requirements import without_half_precision

FEWEST_QUERIES = 64
"""A warpgroup's tile. Fewer queries leave it empty, and the GPU with too few tiles."""

WIDEST = 128
BLOCKS = (64, 128)
SMALLEST_SCALE = 2.0**-20
"""The log-sum-exp passes through the backward in units of unscaled scores, and has to stay finite there."""


class Hopper:
    """Runs bands, gathered columns, rows and blocks in bfloat16 and float16 on GPUs of compute capability 9.0."""

    name = "hopper"

    def refuses(self, problem: Problem) -> str | None:
        """The first thing that these kernels do not do; the portable backends do all of them."""
        widths = problem.width, problem.value_width
        missing = without_half_precision(problem.device, problem.dtype)
        if missing is not None:
            return missing
        if max(widths) > WIDEST or any(width % 8 or not width for width in widths):
            return f"widths are {widths[0]} and {widths[1]}; it takes multiples of 8 up to {WIDEST}"
        if problem.scale < SMALLEST_SCALE:
            return f"the scale is {problem.scale}; it takes {SMALLEST_SCALE} and larger ones"
        if not problem.batch:
            return "the batch is empty"
        if problem.plan.queries < FEWEST_QUERIES:
            return f"there are {problem.plan.queries} queries, and its tiles hold {FEWEST_QUERIES}"
        for asked, what in ((problem.dropout, "dropout"), (problem.softcap, "softcap"), (problem.lengths, "lengths")):
            if asked:
                return f"it has no {what}"
        return _other_blocks(problem) or without_span(problem.plan, blocks=True)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Backend` says."""
        out, lse = empty_results(q, v)
        works = _works().forward(plan, Inputs(q, k, v), sinks, out, lse, softmax=softmax)
        with made_current(q.device):
            _side_by_side(works, q.device)
        return out, lse

    def again(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan, softmax: Softmax, *, lse: bool) -> Again | None:
        """The launch alone, where the call was one launch of q, k and v as they are; as `Repeating` says."""
        launched = _works().repeated(plan, Inputs(q, k, v), softmax.scale)
        if launched is None:
            return None
        out, rows = empty_results(q, v)
        out_shape, out_strides, lse_shape, lse_strides = out.shape, out.stride(), rows.shape, rows.stride()
        device, float32 = q.device, rows.new_empty(0)  # a tensor makes others of its dtype faster than of another

        def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None] | None:
            out = q.new_empty_strided(out_shape, out_strides)
            rows = float32.new_empty_strided(lse_shape, lse_strides) if lse else None
            q_at, k_at, v_at, out_at = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
            rows_at = None if rows is None else rows.data_ptr()
            if not launched.may_run(q_at | k_at | v_at | out_at | (rows_at or 0)):
                return None
            with made_current(device):
                launched.run((q, k, v, out, rows, None), (q_at, k_at, v_at, out_at, rows_at, None))
            return out, rows

        return run

    def backward(
        self, saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(dq, dk, dv, gradient of the sinks), as `Backend` says."""
        q = saved.q
        dq, dk, dv = (empty_beside(x, x.shape[-1]) for x in (q, saved.k, saved.v))
        results = Results(saved.out, saved.lse, grad_out, grad_lse)
        works, apart = _works().backward(plan, saved, results, dq, dk, dv, softmax=softmax)
        with made_current(q.device):
            _side_by_side(works, q.device, apart)
        dsinks = sink_gradient(saved, grad_out, grad_lse)
        return dq, dk, dv, dsinks


HOPPER = Hopper()


def _other_blocks(problem: Problem) -> str | None:
    """What blocks ask for that these kernels do not do, or None."""
    terms = [term for group in problem.plan.groups for term in group.terms if isinstance(term, Blocks)]
    sizes = {problem.block} if problem.block else {term.size for term in terms}
    for size in sizes - set(BLOCKS):
        return f"blocks are {size} × {size}; it takes {BLOCKS[0]} × {BLOCKS[0]} and {BLOCKS[1]} × {BLOCKS[1]}"
    if sizes and problem.within and problem.plan.queries != problem.plan.keys:
        return f"sequences within bounds have {problem.plan.queries} queries and {problem.plan.keys} keys beside blocks"
    return None


@lru_cache(maxsize=1)
def _works() -> ModuleType:
    """Imported at the first call alone: where the backend refuses, Triton may be missing."""
    from . import works

    return works


def _side_by_side(works: list[Callable[[], None]], device: torch.device, apart: bool = True) -> None:
    """Each work on a stream of its own, so that one fills the machine where another runs out of tiles.

    Works that are not `apart` add to the gradients of one key head, and take turns.
    """
    if len(works) == 1 or not apart:
        for work in works:
            work()
        return
    here = torch.cuda.current_stream(device)
    begun = here.record_event()
    streams = _streams(device, len(works) - 1)
    try:
        for work, stream in zip(works[1:], streams, strict=True):
            stream.wait_event(begun)
            _on(stream, here, work)
        works[0]()
    finally:  # also where a work fails: what the others still write to may not be freed before
        for stream in streams:
            here.wait_stream(stream)


def _on(stream: torch.cuda.Stream, here: torch.cuda.Stream, work: Callable[[], None]) -> None:
    """The work on a stream of the current device; `torch.cuda.stream` would ask again where it stands."""
    torch.cuda.set_stream(stream)
    try:
        work()
    finally:
        torch.cuda.set_stream(here)


@lru_cache(maxsize=64)
def _streams(device: torch.device, count: int) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(count))
