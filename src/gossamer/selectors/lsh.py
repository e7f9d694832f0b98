"""Locality-sensitive hashing: tokens whose vectors point the same way fall into one bucket, and meet there.

Kitaev, Kaiser and Levskaya, Reformer: the efficient transformer (arXiv 2001.04451). Whoever has built it since has
built something slightly different; each difference is a field here, and each convention a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import isfinite, prod

import torch
from torch import Tensor

from ..patterns.base import is_number, require_buckets, require_integer
from .rounds import EDGES, Chunks, Edge

Buckets = int | tuple[int, ...] | None

MOST_COLUMNS = 256
"""Of a rotated vector that are held at a time."""


@dataclass(frozen=True)
class LSH:
    """Tokens meet those that a random rotation puts near them, in several rounds of hashing.

    A query also is its own key, of length one. A token sees itself only where it sees nobody else. The rounds are
    joined by their log-sum-exp.

    >>> LSH.paper(rounds=4, chunk=64).bucket_counts(4096)
    (128,)
    >>> LSH.trax(rounds=2, chunk=64).bucket_counts(65536)
    (32, 64)
    >>> LSH.lucidrains(rounds=2, chunk=64).bucket_counts(65600)
    (1026,)
    """

    rounds: int
    chunk: int
    buckets: Buckets = None
    """How many, or how many for each of several independent rotations; None chooses by the length."""
    before: int = 1
    """Chunks before its own that a token meets."""
    after: int = 0
    causal: bool = True
    other_buckets: bool = False
    """Whether a token meets tokens of other buckets that share its chunks."""
    repeats: bool = False
    """Whether a token that is met in several rounds counts as often, or once."""
    edge: Edge = "stops"
    """What a chunk meets beyond the edge of its round: see `Chunks`."""
    scale: float | None = 1.0
    """What products of a query and a key of length one are multiplied with; None is width^-1/2."""
    epsilon: float = 1e-6
    """Added to the mean square of a key before it is divided by its root."""
    buckets_per_chunk: int = 2
    """Of `buckets=None`."""
    powers_of_two: bool = True
    """Of `buckets=None`: round their number down to a power of two, and make many by two rotations; or else round it
    up to an even one, and make all by one."""

    def __post_init__(self) -> None:
        least = {"rounds": 1, "chunk": 1, "before": 0, "after": 0, "buckets_per_chunk": 1}
        for name, bound in least.items():
            object.__setattr__(self, name, require_integer("LSH", name, getattr(self, name), bound))
        object.__setattr__(self, "buckets", require_buckets("LSH", "buckets", self.buckets))
        for name in ("causal", "other_buckets", "repeats", "powers_of_two"):
            self._require(name, isinstance(getattr(self, name), bool), "give True or False")
        fits = self.scale is None or _is_finite(self.scale)
        self._require("scale", fits, "give a finite number, or None for width^-1/2")
        self._require("epsilon", _is_finite(self.epsilon) and self.epsilon > 0, "give a finite number above 0")
        self._require("edge", self.edge in EDGES, f"give one of {', '.join(EDGES)}")
        if self.edge != "stops" and not (self.other_buckets and self.repeats):
            raise ValueError(
                f"LSH: edge is {self.edge!r}, but tokens of other buckets, or of an earlier round, are left out; "
                f"give edge='stops', or other_buckets=True and repeats=True"
            )

    @classmethod
    def paper(cls, rounds: int, chunk: int, buckets: Buckets = None, *, causal: bool = True) -> LSH:
        """The paper's: only one's own bucket is seen, and no token counts twice (equations 13 to 16).

        The paper leaves the scale out of its formulas; it is that of its authors' program.
        """
        return cls(rounds, chunk, buckets, causal=causal)

    @classmethod
    def trax(
        cls, rounds: int, chunk: int, buckets: Buckets = None,
        *, causal: bool = True, before: int = 1, after: int = 0,
    ) -> LSH:  # fmt: skip
        """That of the authors' program, trax, and of Hugging Face's after it: whoever shares the chunks is seen.

        A token counts as often as it is met, and a chunk at the edge of a round looks into the next one.
        """
        return cls(
            rounds, chunk, buckets, before, after, causal, other_buckets=True, repeats=True, edge="crosses"
        )  # fmt: skip

    @classmethod
    def lucidrains(cls, rounds: int, chunk: int, buckets: int | None = None, *, causal: bool = True) -> LSH:
        """That of the package reformer-pytorch: trax's, with scores divided by the root of the width.

        A chunk is as large as a bucket on average, and not twice as large; all buckets are made by one rotation.
        """
        return cls(
            rounds, chunk, buckets, causal=causal, other_buckets=True, repeats=True, edge="crosses",
            scale=None, epsilon=1e-12, buckets_per_chunk=1, powers_of_two=False,
        )  # fmt: skip

    @property
    def chunks(self) -> Chunks:
        """How chunks meet, for the kernels."""
        return Chunks(self.chunk, self.before, self.after, self.edge, self.causal)

    def bucket_counts(self, length: int) -> tuple[int, ...]:
        """How many buckets each rotation has; a bucket of all is one of each.

        `buckets=None` takes `buckets_per_chunk` for each whole chunk, rounded down to a power of two. More than twice
        the chunk's size are made by two rotations, because hashing costs as much as there are buckets in a rotation.
        Without `powers_of_two` a chunk that is not whole counts too, and all are made by one.
        """
        if self.buckets is not None:
            return self.buckets if isinstance(self.buckets, tuple) else (self.buckets,)
        if not self.powers_of_two:
            wanted = self.buckets_per_chunk * self.chunks.count(length)
            return (max(wanted + wanted % 2, 2),)
        power = max(self.buckets_per_chunk * (length // self.chunk), 2).bit_length() - 1
        if 2**power <= max(2 * self.chunk, 2):
            return (2**power,)
        return 2 ** (power // 2), 2 ** (power - power // 2)

    def most(self, length: int) -> int:
        """What every bucket number of `hash` is below."""
        return prod(self.bucket_counts(length))

    def is_full(self, length: int) -> bool:
        """Whether every token meets every other in each round, so that this is attention without hashing."""
        return length <= self.chunk and (self.other_buckets or self.most(length) == 1)

    def rotations(
        self, heads: int, width: int, length: int, *, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32, generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Normal numbers [H, D, R, F], half as many columns as the rotations have buckets."""
        columns = sum(count // 2 for count in self.bucket_counts(length))
        shape = heads, width, self.rounds, columns
        return torch.randn(shape, device=device, dtype=dtype, generator=generator)

    def hash(self, x: Tensor, rotations: Tensor) -> Tensor:
        """int64 [B, H, R, N]: for each vector of `x` [B, H, N, D] the largest of [xR; -xR], the first of equal ones.

        Several rotations make one number, the first counting ones. Products are added up in float32 or float64.
        """
        return hash_vectors(x, rotations, self.bucket_counts(x.shape[2]))

    def keys(self, x: Tensor) -> Tensor:
        """The vectors [..., D] as keys: `x / sqrt(|x|² + D·epsilon)`."""
        return x * self.units(x)[..., None].to(x.dtype)

    def units(self, x: Tensor) -> Tensor:
        """[...]: what each vector of `x` [..., D] is multiplied with to become a key, in float32 or float64."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
        return torch.rsqrt(length.square() + x.shape[-1] * self.epsilon)

    def _require(self, name: str, holds: bool, fix: str) -> None:
        if not holds:
            raise ValueError(f"LSH: {name} is {getattr(self, name)!r}; {fix}")


def hash_vectors(x: Tensor, rotations: Tensor, counts: Sequence[int]) -> Tensor:
    """What `LSH.hash` says, of rotations [H, D, R, F] that have `counts` buckets."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    cuts = pairwise(accumulate((count // 2 for count in counts), initial=0))
    buckets = torch.zeros(*x.shape[:2], rotations.shape[2], x.shape[2], dtype=torch.int64, device=x.device)
    unit = 1
    for count, (first, last) in zip(counts, cuts, strict=True):
        if count > 1:
            buckets += unit * _furthest(x, rotations[..., first:last].to(x.dtype))
        unit *= count
    return buckets


def _furthest(x: Tensor, rotation: Tensor) -> Tensor:
    """Where [B, H, R, N] the largest of [y; -y] stands, y = x · rotation [H, D, R, F], made a few columns at a time."""
    parts = []
    for columns in rotation.split(MOST_COLUMNS, -1):
        part = torch.einsum("bhnd,hdrf->bhrnf", x, columns)
        parts.append((*part.max(-1), *part.min(-1)))
    highest, at, lowest, under = (torch.stack(each) for each in zip(*parts, strict=True))
    (best, part), (worst, part_below) = highest.max(0), lowest.min(0)
    at = MOST_COLUMNS * part + at.gather(0, part[None])[0]
    under = MOST_COLUMNS * part_below + under.gather(0, part_below[None])[0]
    return torch.where(best >= -worst, at, under + rotation.shape[-1])


def _is_finite(value: object) -> bool:
    return is_number(value) and isfinite(value)
