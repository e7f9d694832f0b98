"""The operators of `attend_blocks`: softmax attention over blocks that a layout on the device chooses at run time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import Layout, Saved, Softmax
from .at_run_time import backward, forward, register
from .boundary import LIBRARY, MAKES_TABLES

torch.library.define(
    "gossamer::attend_blocks",
    "(Tensor q, Tensor k, Tensor v, Tensor layout, Tensor? within, int block, float scale, str? backend) "
    "-> (Tensor, Tensor)",
    tags=MAKES_TABLES,
)
torch.library.define(
    "gossamer::attend_blocks_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor layout, "
    "Tensor? within, int block, float scale, str? backend) -> (Tensor, Tensor, Tensor)",
    tags=MAKES_TABLES,
)


@torch.library.impl(LIBRARY, "attend_blocks", "CompositeExplicitAutograd")
def _attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, layout: Tensor, within: Tensor | None,
    block: int, scale: float, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return forward(q, k, v, _softmax(layout, within, block, scale), backend)


@torch.library.impl(LIBRARY, "attend_blocks_backward", "CompositeExplicitAutograd")
def _attend_blocks_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: Tensor, within: Tensor | None, block: int, scale: float, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    saved = Saved(q, k, v, out, lse, None)
    return backward(saved, grad_out, grad_lse, _softmax(layout, within, block, scale), backend)


def _softmax(layout: Tensor, within: Tensor | None, block: int, scale: float) -> Softmax:
    return Softmax(scale, within=None if within is None else within.contiguous(), blocks=Layout(layout, block))


register("attend_blocks", tensors=2)
