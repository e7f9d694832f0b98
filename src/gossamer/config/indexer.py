"""The shape of an indexer, which chooses the keys that attention sees, as a value that imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..patterns.base import require_integer
from .rotary import HALVES, RotaryConfig

PRECISIONS = ("as given", "fp8", "fp8 ue8m0")


@dataclass(frozen=True)
class IndexerConfig:
    """The shape of a lightning indexer (DeepSeek-V3.2, arXiv 2512.02556), by the names of config.json.

    >>> IndexerConfig(index_n_heads=4, index_head_dim=32, qk_rope_head_dim=16, index_topk=256).index_topk
    256

    Raises:
        ValueError: A field is out of its range.
    """

    index_n_heads: int = 64
    """Heads of index queries; all have one index key."""
    index_head_dim: int = 128
    """Features of an index query or key."""
    index_topk: int = 2048
    """Keys that a query sees, at most; where fewer stand before it, it sees them all."""
    qk_rope_head_dim: int = 64
    """How many of the features, the first ones, are turned by positions; 0: none."""
    rotary: RotaryConfig = HALVES
    """How they are turned: by halves, as DeepSeek's are (its main attention turns neighbours), unlike GLM-5's."""
    relu: bool = True
    """Whether products below zero count as zero, before heads are summed."""
    precision: str = "as given"
    """What queries and keys are scored in; "fp8" rounds each vector to e4m3 with a scale of its own, "fp8 ue8m0" with
    one that is a power of two."""
    hadamard: bool = False
    """Whether both are turned by a Hadamard matrix, which spreads large features over all before they are rounded to
    eight bits, and changes no product. The width then is a power of two."""

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            object.__setattr__(self, name, require_integer("IndexerConfig", name, getattr(self, name), least=least))
        turned = self.qk_rope_head_dim
        if turned % 2 or turned > self.index_head_dim:
            raise ValueError(
                f"IndexerConfig: qk_rope_head_dim is {turned}; give an even number of at most "
                f"index_head_dim={self.index_head_dim}"
            )
        if not isinstance(self.rotary, RotaryConfig):
            raise ValueError(f"IndexerConfig: rotary is {self.rotary!r}; give a RotaryConfig")
        for name in ("relu", "hadamard"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"IndexerConfig: {name} is {getattr(self, name)!r}; give True or False")
        if self.precision not in PRECISIONS:
            known = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"IndexerConfig: precision is {self.precision!r}; give one of: {known}")
        if self.hadamard and self.index_head_dim & (self.index_head_dim - 1):
            raise ValueError(f"IndexerConfig: index_head_dim is {self.index_head_dim}; hadamard takes a power of two")


_INTEGERS = {"index_n_heads": 1, "index_head_dim": 1, "index_topk": 1, "qk_rope_head_dim": 0}
