"""Hopper's road of indexed attention: latents that are keys and values at once."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from torch import Tensor

from ..indexed import Inputs, Returning
from .requirements import without_half_precision

WIDTH, VALUE = 576, 512
"""Of a latent, and of the columns of it that are its value."""


class HopperIndexed:
    """Runs on GPUs of compute capability 9.0, in bfloat16 and float16."""

    name = "hopper"

    def refuses(self, given: Inputs, *, backward: bool) -> str | None:
        """The first thing that these kernels do not do."""
        q, selection = given.q, given.selection
        missing = without_half_precision(q.device, q.dtype)
        if missing is not None:
            return missing
        if given.v is not None or given.k.shape[1] != 1:
            return "it takes one key head whose leading columns are the values, as attend_latent has it"
        if (q.shape[3], given.value_width) != (WIDTH, VALUE):
            return f"latents are {q.shape[3]} wide, values {given.value_width}; it takes {WIDTH} and {VALUE}"
        if selection.block_size != 1:
            return f"blocks of {selection.block_size} keys are chosen; it takes single keys"
        return given.extra

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Road` says."""
        return _latent().forward(given)

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of q and k; there is no v."""
        return *_latent().backward(given, come), None


HOPPER_INDEXED = HopperIndexed()


@lru_cache(maxsize=1)
def _latent() -> ModuleType:
    """Imported at the first call alone: where the road refuses, Triton may be missing."""
    from . import latent

    return latent
