"""On which devices portable kernels take selections of blocks, and how they become launches."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

from ..indexed import Inputs, Returning
from .backend import on, without_gpu

if TYPE_CHECKING:
    from .block_choices import TritonChosen


class TritonBlocks:
    """Runs on any GPU that Triton compiles for, in float32, bfloat16 and float16."""

    name = "triton"

    def refuses(self, given: Inputs) -> str | None:
        """What is missing on the machine."""
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        return without_gpu(given.q.device)

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
