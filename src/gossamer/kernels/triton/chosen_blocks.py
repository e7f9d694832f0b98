"""On which devices portable kernels take selections of blocks, and how they become launches."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

from ..indexed import Inputs, Returning
from .backend import on, shared_memory, without_gpu

if TYPE_CHECKING:
    from .block_choices import TritonChosen


NEEDED = {16 << 10: 99 << 10, 32 << 10: 116 << 10}
"""Bytes of shared memory that programs need, by the bytes of a block's keys and values, up to and including. What is
larger does not fit into registers."""


class TritonBlocks:
    """Runs on any GPU that Triton compiles for and that has the shared memory, in float32, bfloat16 and float16."""

    name = "triton"

    def refuses(self, given: Inputs) -> str | None:
        """What is missing on the machine, or how a block is too large."""
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        widths = sum(max(16, 1 << (width - 1).bit_length()) for width in (given.q.shape[3], given.value_width))
        taken = given.selection.block_size * widths * given.q.element_size()
        needed = next((needed for most, needed in NEEDED.items() if taken <= most), None)
        if needed is None:
            return f"a block's keys and values take {taken >> 10} KiB as tiles; it takes {max(NEEDED) >> 10} at most"
        missing = without_gpu(given.q.device)
        if missing is None and given.q.is_cuda and shared_memory(given.q.device) < needed:
            held = shared_memory(given.q.device) >> 10
            return f"it needs {needed >> 10} KiB of shared memory for such blocks; the GPU has {held}"
        return missing

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Road` says."""
        with on(given.q.device):
            return _work(given).forward(given.sinks)

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, as `Road` says."""
        with on(given.q.device):
            return _work(given).backward(come.out, come.lse, come.grad_out, come.grad_lse)


TRITON_BLOCKS = TritonBlocks()


def _work(given: Inputs) -> TritonChosen:
    """Imported at the first call alone: where these kernels refuse, Triton may be missing."""
    from .block_choices import TritonChosen

    selection = given.selection
    numbers = selection.indices, selection.block_size, selection.causal
    return TritonChosen(given.q, given.k, given.values, *numbers, given.softmax.scale)
