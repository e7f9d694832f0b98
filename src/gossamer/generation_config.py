"""How the next token is chosen, as a value that imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .patterns.base import require_integer

LEAST_TEMPERATURE = 1e-6  # below, quotients leave the range of float32


@dataclass(frozen=True)
class SamplingConfig:
    """How many tokens to write, and how each is drawn from the model's distribution.

    The logits are divided by `temperature`; of their softmax the `top_k` likeliest tokens stay, and of those
    the likeliest whose probabilities first sum to `top_p` (nucleus sampling, Holtzman et al. 2020).

    >>> SamplingConfig(temperature=0.8, top_p=0.95, seed=1).max_new_tokens
    256

    Raises:
        ValueError: A field is out of its range.
    """

    max_new_tokens: int | None = 256
    """How many tokens to write at most; None: no end but a stop token, for models whose positions have none."""
    temperature: float = 1.0
    """1 samples the model's own distribution; 0 always takes the likeliest token."""
    top_k: int | None = None
    """How many tokens to choose from; None, or more than there are: all."""
    top_p: float | None = None
    """Probability mass to choose from, in (0, 1]; None: all."""
    seed: int | None = None
    """The same seed, model and prompt give the same tokens; None draws a new one each time."""
    stop: tuple[int, ...] = ()
    """Token ids that end a text; the one that did is part of it."""

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            require_integer("generate", "max_new_tokens", self.max_new_tokens, least=0)
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"generate: temperature is {self.temperature!r}; give 0 (greedy), or {LEAST_TEMPERATURE} or more"
            )
        if self.top_k is not None:
            require_integer("generate", "top_k", self.top_k, least=1)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p is {self.top_p!r}; give a share in (0, 1]")
        if self.seed is not None and require_integer("generate", "seed", self.seed, least=0) >= 2**64:
            raise ValueError(f"generate: seed is {self.seed}; give one below 2**64")
        if not isinstance(self.stop, Sequence) or isinstance(self.stop, str):
            raise ValueError(f"generate: stop is {self.stop!r}; give a tuple of token ids")
        object.__setattr__(self, "stop", tuple(require_integer("generate", "stop", id, least=0) for id in self.stop))
