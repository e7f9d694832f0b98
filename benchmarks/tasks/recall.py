"""Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927): pairs of tokens, and then half of some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

IGNORED = -100


class Recalls(NamedTuple):
    """Texts, and at each key that comes again the value that stood behind it the first time."""

    tokens: Int64[Tensor, "B N"]
    targets: Int64[Tensor, "B N"]


@dataclass(frozen=True)
class Recall:
    """`pairs` keys, each with its value behind it, then every key once more somewhere in a text of `length` tokens.

    The first half of the vocabulary are keys (0 is none), the second half values; no text has a key or a value twice.
    Behind the pairs every second place may hold a key again; the places are drawn without replacement, the g-th
    with a probability that falls as a power, p(g) ~ g^(power - 1) for g = 1, 2, ... All the rest is 0 or, with
    `noise`, any token at all, which may be a key by chance.

    >>> Recall(length=12, pairs=2, vocabulary=12).draw(1, torch.Generator().manual_seed(1)).tokens.tolist()
    [[1, 10, 5, 9, 1, 0, 5, 0, 0, 0, 0, 0]]

    Raises:
        ValueError: The length is odd, or holds no four tokens for each pair, or there are more pairs than keys.
    """

    length: int
    pairs: int
    vocabulary: int = 8192
    power: float = 0.01
    noise: bool = False

    def __post_init__(self) -> None:
        if self.length % 2 or self.length < 4 * self.pairs:
            raise ValueError(f"Recall: length is {self.length}; give an even one, at least 4 * pairs={4 * self.pairs}")
        if self.pairs > self.vocabulary // 2 - 1:
            raise ValueError(
                f"Recall: pairs is {self.pairs}, but a vocabulary of {self.vocabulary} has "
                f"{self.vocabulary // 2 - 1} keys; give at most as many"
            )

    @property
    def context(self) -> int:
        """Tokens of the pairs, behind which keys come again."""
        return 2 * self.pairs

    def draw(self, batch: int, generator: torch.Generator) -> Recalls:
        """So many texts, on the generator's device."""
        device, half = generator.device, self.vocabulary // 2
        keys = 1 + self._distinct(batch, torch.ones(half - 1, device=device), generator)
        values = half + self._distinct(batch, torch.ones(self.vocabulary - half, device=device), generator)
        gaps = torch.arange(1, (self.length - self.context) // 2 + 1, device=device, dtype=torch.float32)
        again = self.context + 2 * self._distinct(batch, gaps ** (self.power - 1), generator)
        tokens = torch.zeros(batch, self.length, dtype=torch.int64, device=device)
        tokens[:, 0 : self.context : 2], tokens[:, 1 : self.context : 2] = keys, values
        tokens.scatter_(1, again, keys)
        targets = torch.full_like(tokens, IGNORED).scatter_(1, again, values)
        if self.noise:
            drawn = torch.randint(self.vocabulary, tokens.shape, generator=generator, device=device)
            tokens = torch.where(tokens == 0, drawn, tokens)
        return Recalls(tokens, targets)

    def _distinct(self, batch: int, weights: Tensor, generator: torch.Generator) -> Int64[Tensor, "B K"]:
        """`pairs` places, one after another, each drawn by its weight among those that are left."""
        # of exponential variables with these rates, the smallest is each one with a probability of its weight
        waits = torch.empty(batch, len(weights), device=weights.device).exponential_(generator=generator) / weights
        return waits.topk(self.pairs, largest=False).indices
