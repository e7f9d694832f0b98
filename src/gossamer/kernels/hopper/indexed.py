"""Hopper's road of indexed attention: latents that are keys and values at once, and blocks of keys."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..block_choices.requirements import unfit
from ..devices import made_current
from ..indexed import Inputs, Returning
from .requirements import without_hopper

if TYPE_CHECKING:
    from .block_choices import HopperChosen

WIDTH, VALUE = 576, 512
"""Of a latent, and of the columns of it that are its value."""
BLOCK = 64
WIDTHS = 64, 128
GROUPS = 4, 8, 16, 32, 64
"""Blocks, widths and groups of heads whose tiles fill a matrix instruction."""


class HopperIndexed:
    """Runs on GPUs of compute capability 9.0, in bfloat16 and float16."""

    name = "hopper"

    def refuses(self, given: Inputs, *, backward: bool) -> str | None:
        """The first thing that these kernels do not do."""
        q, selection, softmax = given.q, given.selection, given.softmax
        missing = without_hopper(q.device)
        if missing is not None:
            return missing
        if q.dtype not in (torch.bfloat16, torch.float16):
            return f"inputs are {q.dtype}; it computes bfloat16 and float16"
        if selection.block_size > 1:
            return unfit(given) or _unfit_here(given)
        if given.v is not None or given.k.shape[1] != 1:
            return "it takes one key head whose leading columns are the values, as attend_latent has it"
        if (q.shape[3], given.value_width) != (WIDTH, VALUE):
            return f"latents are {q.shape[3]} wide, values {given.value_width}; it takes {WIDTH} and {VALUE}"
        if selection.mask is not None:
            return "it takes no mask"
        if softmax.softcap or softmax.dropout:
            return "it has no softcap and no dropout"
        if softmax.scale <= 0:
            return f"the scale is {softmax.scale}; it takes a positive one"
        return None

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Road` says."""
        if given.selection.block_size > 1:
            with made_current(given.q.device):
                return _blocks(given).forward(given.sinks)
        return _latent().forward(given)

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of q, k and v, where there is one."""
        if given.selection.block_size > 1:
            grad_out = come.grad_out.to(given.q.dtype)
            with made_current(given.q.device):
                return _blocks(given).backward(come.out, come.lse, grad_out, come.grad_lse)
        return *_latent().backward(given, come), None


HOPPER_INDEXED = HopperIndexed()


def _unfit_here(given: Inputs) -> str | None:
    """What these kernels do not do of blocks, while portable ones do."""
    heads, key_heads, size = given.q.shape[1], given.k.shape[1], given.selection.block_size
    widths, repeats = (given.q.shape[3], given.value_width), heads // key_heads
    if size != BLOCK:
        return f"blocks of {size} keys are chosen; it takes blocks of {BLOCK}"
    if any(width not in WIDTHS for width in widths):
        return f"heads are {widths[0]} and {widths[1]} wide; with blocks it takes {' and '.join(map(str, WIDTHS))}"
    if repeats not in GROUPS:
        return f"{repeats} query heads share a key head; with blocks it takes {', '.join(map(str, GROUPS))}"
    return None


def _blocks(given: Inputs) -> HopperChosen:
    from .block_choices import HopperChosen
    from .descriptors import addressable

    selection = given.selection
    q, k, v = map(addressable, (given.q, given.k, given.values))
    return HopperChosen(q, k, v, selection.indices, selection.block_size, selection.causal, given.softmax.scale)


@lru_cache(maxsize=1)
def _latent() -> ModuleType:
    """Imported at the first call alone: where the road refuses, Triton may be missing."""
    from . import latent

    return latent
