"""Hopper's road to where heads look among chosen latents."""

from __future__ import annotations

from torch import Tensor

from ..chosen import Heads
from .indexed import WIDTH
from .requirements import without_half_precision


class HopperMass:
    """Runs on GPUs of compute capability 9.0, in bfloat16 and float16, for any number of heads."""

    name = "hopper"

    def refuses_mass(self, heads: Heads) -> str | None:
        """The first thing that this kernel does not do."""
        q, k = heads.q, heads.k
        missing = without_half_precision(q.device, q.dtype)
        if missing is not None:
            return missing
        if (k.shape[1], q.shape[3]) != (1, WIDTH):
            return f"there are {k.shape[1]} key heads, {q.shape[3]} wide; it takes one of {WIDTH}"
        return None

    def mass(self, heads: Heads) -> Tensor:
        """[B, Q, n], as `MassRoad` says."""
        from .latent_mass import latent_mass  # Triton may be missing where it refuses

        return latent_mass(heads)


HOPPER_MASS = HopperMass()
