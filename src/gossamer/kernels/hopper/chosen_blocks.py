"""Which selections of blocks Hopper's kernels take, and how they become launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..devices import made_current
from ..indexed import Inputs, Returning
from .requirements import without_half_precision

if TYPE_CHECKING:
    from .block_choices import HopperChosen

BLOCK = 64
WIDTHS = 64, 128
GROUPS = 4, 8, 16, 32, 64
"""Blocks, widths and groups of heads whose tiles fill a matrix instruction."""


class HopperBlocks:
    """Runs on GPUs of compute capability 9.0, in bfloat16 and float16."""

    name = "hopper"

    def refuses(self, given: Inputs) -> str | None:
        """The first thing that these kernels do not do of blocks, while portable ones may."""
        q, size = given.q, given.selection.block_size
        widths, repeats = (q.shape[3], given.value_width), q.shape[1] // given.k.shape[1]
        missing = without_half_precision(q.device, q.dtype)
        if missing is not None:
            return missing
        if size != BLOCK:
            return f"blocks of {size} keys are chosen; it takes blocks of {BLOCK}"
        if any(width not in WIDTHS for width in widths):
            return f"heads are {widths[0]} and {widths[1]} wide; it takes {' and '.join(map(str, WIDTHS))}"
        if repeats not in GROUPS:
            return f"{repeats} query heads share a key head; it takes {', '.join(map(str, GROUPS))}"
        return None

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Road` says."""
        with made_current(given.q.device):
            return _work(given).forward(given.sinks)

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, as `Road` says."""
        grad_out = come.grad_out.to(given.q.dtype)
        with made_current(given.q.device):
            return _work(given).backward(come.out, come.lse, grad_out, come.grad_lse)


HOPPER_BLOCKS = HopperBlocks()


def _work(given: Inputs) -> HopperChosen:
    """Imported at the first call alone: where these kernels refuse, Triton may be missing."""
    from .block_choices import HopperChosen
    from .descriptors import addressable

    selection = given.selection
    q, k, v = map(addressable, (given.q, given.k, given.values))
    return HopperChosen(q, k, v, selection.indices, selection.block_size, selection.causal, given.softmax.scale)
