"""How positions turn queries and keys, as a value that imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log

from ..patterns.base import is_number, require_integer


@dataclass(frozen=True)
class YarnConfig:
    """Rotation for texts longer than those of pre-training, by YaRN (Peng et al. 2023, arXiv 2309.00071).

    Features that turn often within the original length keep their rates, those that turn less than once have them
    divided by `factor`, and a ramp lies between. Names are those of `rope_parameters` in config.json.

    >>> YarnConfig(factor=40, original_max_position_embeddings=4096, mscale_all_dim=1.0).softmax_factor
    1.8738542070926265

    Raises:
        ValueError: A field is out of its range.
    """

    factor: float
    """How many times longer texts become; at least 1."""
    original_max_position_embeddings: int
    """Tokens of the longest text in pre-training."""
    beta_fast: float = 32.0
    """Features with at least so many turns in the original length keep their rates."""
    beta_slow: float = 1.0
    """Features with at most so many turns in it have their rates divided."""
    mscale: float = 1.0
    """Weight of the factor 1 + 0.1·ln(factor) on what is turned, by which scores grow; 0: none."""
    mscale_all_dim: float = 0.0
    """Weight of the same factor on whole queries and keys, turned or not: what is turned is divided by it, and the
    softmax's scale is multiplied by its square. DeepSeek has 1 here, so the turned features keep their lengths."""

    def __post_init__(self) -> None:
        name = "original_max_position_embeddings"
        length = require_integer("YarnConfig", name, getattr(self, name), least=1)
        object.__setattr__(self, name, length)
        self._require("factor", is_number(self.factor) and 1 <= self.factor < inf, "give 1 or more")
        for name, least in (("beta_slow", 0.0), ("beta_fast", self.beta_slow)):
            self._require(name, is_number(value := getattr(self, name)) and least < value < inf, f"give over {least}")
        for name in ("mscale", "mscale_all_dim"):
            self._require(name, is_number(value := getattr(self, name)) and 0 <= value < inf, "give 0 or more")

    @property
    def length_factor(self) -> float:
        """What queries and keys are multiplied by where they are turned."""
        return self._grown(self.mscale) / self._grown(self.mscale_all_dim)

    @property
    def softmax_factor(self) -> float:
        """What the softmax's scale is multiplied by."""
        return self._grown(self.mscale_all_dim) ** 2

    def _grown(self, weight: float) -> float:
        return 1.0 + 0.1 * weight * log(self.factor)

    def _require(self, name: str, holds: bool, fix: str) -> None:
        if not holds:
            raise ValueError(f"YarnConfig: {name} is {getattr(self, name)!r}; {fix}")


@dataclass(frozen=True)
class RotaryConfig:
    """Rotation of features by their token's position (RoPE, Su et al. 2021, arXiv 2104.09864).

    Raises:
        ValueError: A field is out of its range.
    """

    theta: float = 10_000.0
    """Feature pair i of D/2 turns by `theta^(-2i/D)` a token."""
    interleaved: bool = False
    """Whether pairs are neighbours (0 and 1, 2 and 3, as DeepSeek's MLA) or halves apart (0 and D/2, as Llama and
    DeepSeek's indexer). Weights that were trained with one are useless with the other, and nothing raises."""
    yarn: YarnConfig | None = None
    """Rates for longer texts than those of pre-training."""

    def __post_init__(self) -> None:
        if not (is_number(self.theta) and 1 < self.theta < inf):
            raise ValueError(f"RotaryConfig: theta is {self.theta!r}; give a number above 1, such as 10000.0")
        if not isinstance(self.interleaved, bool):
            raise ValueError(f"RotaryConfig: interleaved is {self.interleaved!r}; give True or False")
        if not isinstance(self.yarn, YarnConfig | None):
            raise ValueError(f"RotaryConfig: yarn is {self.yarn!r}; give a YarnConfig, or None")


HALVES = RotaryConfig()
"""As Llama turns."""
NEIGHBOURS = RotaryConfig(interleaved=True)
"""As DeepSeek's MLA does."""
