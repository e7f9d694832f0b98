"""The operators of `attend_runs`: softmax attention over runs of keys that are made on the device at run time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import Saved, Softmax
from .at_run_time import backward, forward, register
from .boundary import LIBRARY, MAKES_TABLES

torch.library.define(
    "gossamer::attend_runs",
    "(Tensor q, Tensor k, Tensor v, Tensor start, Tensor stop, float scale, str? backend) -> (Tensor, Tensor)",
    tags=MAKES_TABLES,
)
torch.library.define(
    "gossamer::attend_runs_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor start, "
    "Tensor stop, float scale, str? backend) -> (Tensor, Tensor, Tensor)",
    tags=MAKES_TABLES,
)


@torch.library.impl(LIBRARY, "attend_runs", "CompositeExplicitAutograd")
def _attend_runs(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor, stop: Tensor, scale: float, backend: str | None
) -> tuple[Tensor, Tensor]:
    return forward(q, k, v, Softmax(scale, runs=(start, stop)), backend)


@torch.library.impl(LIBRARY, "attend_runs_backward", "CompositeExplicitAutograd")
def _attend_runs_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    start: Tensor, stop: Tensor, scale: float, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    saved = Saved(q, k, v, out, lse, None)
    return backward(saved, grad_out, grad_lse, Softmax(scale, runs=(start, stop)), backend)


register("attend_runs", tensors=2)
