"""What a call launches, as works that may run side by side: one for each group of heads, or one plain band."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...plan import Plan
from ..head_runs import head_runs
from ..problem import Saved, Softmax
from . import stream_backward, stream_forward
from .descriptors import addressable
from .group import Fits, Group
from .launch import Repeated
from .operands import Diagonal, Inputs, Results
from .passes import only_band
from .ring import AUX

Work = Callable[[], None]


def forward(
    plan: Plan, inputs: Inputs, sinks: Tensor | None, out: Tensor, lse: Tensor, *, softmax: Softmax
) -> list[Work]:
    """Works that write `out` and `lse` together."""
    (q, k, v), scale = inputs, softmax.scale
    diagonal = None if softmax.is_live else _whole_band(plan, q, k, v, stream_forward.fits)
    if diagonal is not None:  # nothing to cut or to join: the call is one launch
        inputs = Inputs(*map(addressable, inputs))
        return [partial(stream_forward.forward, inputs, out, lse, sinks, diagonal=diagonal, scale=scale)]
    works: list[Work] = []
    for run in head_runs(plan, q.shape[1] // k.shape[1]):
        own = None if sinks is None else sinks[run.queries]
        group = Group(run, plan, q, k, v, softmax)
        works.append(partial(group.forward, own, run.of_queries(out), run.of_queries(lse)))
    return works


def repeated(plan: Plan, inputs: Inputs, scale: float) -> Repeated | None:
    """The launch of (q, k, v, out, lse, no sinks) that is all of a forward, where there is one for such tensors."""
    diagonal = _whole_band(plan, *inputs, stream_forward.fits)
    if diagonal is None or any(addressable(x) is not x for x in inputs):
        return None
    return stream_forward.repeated(diagonal, scale)


def backward(
    plan: Plan, saved: Saved, results: Results, dq: Tensor, dk: Tensor, dv: Tensor, *, softmax: Softmax
) -> tuple[list[Work], bool]:
    """(works that write the gradients together, whether each writes to memory of its own)."""
    q, k, v, scale = saved.q, saved.k, saved.v, softmax.scale
    diagonal = None if softmax.is_live else _whole_band(plan, q, k, v, stream_backward.fits)
    if diagonal is not None:
        inputs = Inputs(*map(addressable, (q, k, v)))
        return [partial(_band_backward, inputs, _addressable(results), dq, dk, dv, diagonal, scale)], True
    works: list[Work] = []
    runs = head_runs(plan, q.shape[1] // k.shape[1])
    for run in runs:
        group = Group(run, plan, q, k, v, softmax)
        given = (None if x is None else run.of_queries(x) for x in results)
        gradients = run.of_queries(dq), run.of_keys(dk), run.of_keys(dv)
        works.append(partial(group.backward, _addressable(Results(*given)), *gradients, fresh=run.fresh))
    return works, all(run.fresh for run in runs)


def _band_backward(
    inputs: Inputs, results: Results, dq: Tensor, dk: Tensor, dv: Tensor, diagonal: Diagonal, scale: float
) -> None:
    aux = inputs.q.new_empty((*dq.shape[:-1], AUX.value), dtype=torch.bfloat16)
    stream_backward.backward_queries(inputs, results, dq, aux, diagonal=diagonal, scale=scale)
    stream_backward.backward_keys(inputs, results.grad_out, aux, dk, dv, diagonal=diagonal, scale=scale)


def _addressable(results: Results) -> Results:
    grad_lse = None if results.grad_lse is None else results.grad_lse.contiguous()
    return Results(results.out, results.lse, addressable(results.grad_out), grad_lse)


def _whole_band(plan: Plan, q: Tensor, k: Tensor, v: Tensor, fits: Fits) -> Diagonal | None:
    """The band that is all of the plan, where no heads share keys and the streaming kernels take it."""
    diagonal = only_band(plan, q.device) if q.shape[1] == k.shape[1] else None
    return diagonal if diagonal is not None and fits(diagonal.width, q.shape[3], v.shape[3]) else None
