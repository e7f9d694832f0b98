"""The shape of latent attention, as a value that imports no torch. Fields have the names of config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from ..patterns.base import is_number, require_integer
from .indexer import IndexerConfig
from .rotary import NEIGHBOURS, RotaryConfig, YarnConfig

Mode = Literal["mha", "mqa"]


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv 2405.04434), with an indexer or without.

    >>> LatentConfig().latent_width, LatentConfig().softmax_scale
    (576, 0.07216878364870322)

    Raises:
        ValueError: A field is out of its range; the message names the field, the value and the fix.
    """

    hidden_size: int = 7168
    """Width of the model."""
    num_attention_heads: int = 128
    """Query heads."""
    q_lora_rank: int | None = 1536
    """Width that queries are made from; None: from the model's."""
    kv_lora_rank: int = 512
    """Width of a token's latent, which keys and values of all heads are made from."""
    qk_nope_head_dim: int = 128
    """Features of a query or key that positions leave alone."""
    qk_rope_head_dim: int = 64
    """Features that are turned by positions; of the key they are one for all heads."""
    v_head_dim: int = 128
    """Features of a value."""
    attention_bias: bool = False
    """Whether the projections from and to the model's width have biases."""
    norm_eps: float = 1e-6
    """Added to the mean square where latents are normalised; not `rms_norm_eps`, which is of the norms around."""
    rotary: RotaryConfig = NEIGHBOURS
    """How queries and keys are turned: neighbours together, as DeepSeek's are."""
    indexer: IndexerConfig | None = None
    """What chooses the keys that a query sees (DSA); None: it sees all before it."""

    def __post_init__(self) -> None:
        for name in _INTEGERS:
            if name != "q_lora_rank" or self.q_lora_rank is not None:
                object.__setattr__(self, name, require_integer("LatentConfig", name, getattr(self, name), least=1))
        self._require("qk_rope_head_dim", self.qk_rope_head_dim % 2 == 0, "give an even number")
        self._require("attention_bias", isinstance(self.attention_bias, bool), "give True or False")
        self._require("norm_eps", is_number(self.norm_eps) and 0 < self.norm_eps < 1, "give a small positive number")
        self._require("rotary", isinstance(self.rotary, RotaryConfig), "give a RotaryConfig")
        self._require("indexer", isinstance(self.indexer, IndexerConfig | None), "give an IndexerConfig, or None")

    @property
    def latent_width(self) -> int:
        """Features that a cache holds of a token: its latent and the turned part of its key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on the scores."""
        scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        return scale if self.rotary.yarn is None else scale * self.rotary.yarn.softmax_factor

    def cheaper_mode(self, queries: int, keys: int, count: int | None = None) -> Mode:
        """The mode of `LatentAttention` that multiplies less for the last `queries` of `keys` tokens.

        In `"mha"` every token that is seen has keys and values made of its latent for all heads, and where `count`
        keys are chosen for a query the others are hidden, not passed over. In `"mqa"` each query and its output are
        projected, a pair multiplies `latent_width` and `kv_lora_rank` features, and only chosen pairs are multiplied.

        >>> big = LatentConfig()  # break-even of 2,048 chosen keys: about 13,000 tokens
        >>> big.cheaper_mode(8192, 8192, 2048), big.cheaper_mode(16384, 16384, 2048), big.cheaper_mode(1, 8192)
        ('mha', 'mqa', 'mqa')
        """
        width = self.qk_nope_head_dim + self.v_head_dim
        projection = self.kv_lora_rank * width
        mha = _visible(queries, keys, keys) * (width + self.qk_rope_head_dim) + keys * projection
        pair = self.latent_width + self.kv_lora_rank
        mqa = _visible(queries, keys, keys if count is None else count) * pair + queries * projection
        return "mha" if mha <= mqa else "mqa"

    @classmethod
    def of_model(cls, settings: Mapping[str, Any]) -> Self:
        """The attention of a model with this config.json, by DeepSeek (V2, V3, V3.2), GLM-5, Kimi and others.

        Fields that say nothing of attention are passed over. A model has an indexer where `index_topk` is given.

        >>> made = LatentConfig.of_model({"hidden_size": 64, "num_attention_heads": 2, "index_topk": 8})
        >>> made.hidden_size, made.indexer.index_topk
        (64, 8)

        Raises:
            ValueError: Positions are scaled by another rule than YaRN, pairs are dropped in training, or a field is
                out of its range.
        """
        if settings.get("attention_dropout"):
            dropout = settings["attention_dropout"]
            raise ValueError(f"LatentConfig: attention_dropout is {dropout!r}; give 0: no pair is dropped here")
        given = {name: settings[name] for name in (*_INTEGERS, "attention_bias") if name in settings}
        rotary = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        theta = rotary.get("rope_theta", settings.get("rope_theta", 10_000.0))
        rule = rotary.get("rope_type", rotary.get("type", "default"))
        if rule not in ("default", "yarn"):
            raise ValueError(f"LatentConfig: rope_type is {rule!r}; there are 'default' and 'yarn'")
        yarn = YarnConfig(**{name: rotary[name] for name in _YARN if name in rotary}) if rule == "yarn" else None
        neighbours = settings.get("rope_interleave", True)
        indexer = None
        if settings.get("index_topk") is not None:
            shape = {name: settings[name] for name in _INDEXER if name in settings}
            glm = settings.get("model_type") == "glm_moe_dsa"  # whose files say nothing of it
            turned = RotaryConfig(theta, settings.get("indexer_rope_interleave", glm), yarn)
            indexer = IndexerConfig(**shape, rotary=turned)
        return cls(**given, rotary=RotaryConfig(theta, neighbours, yarn), indexer=indexer)

    def _require(self, name: str, holds: bool, fix: str) -> None:
        if not holds:
            raise ValueError(f"LatentConfig: {name} is {getattr(self, name)!r}; {fix}")


def _visible(queries: int, keys: int, count: int) -> int:
    """Pairs of the last queries with the keys up to them, of which each sees `count` at most."""
    few = max(min(count, keys) - (keys - queries), 0)  # queries that see fewer
    return few * (keys - queries) + few * (few + 1) // 2 + (queries - few) * min(count, keys)


_INTEGERS = (
    *("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)
_INDEXER = ("index_n_heads", "index_head_dim", "index_topk", "qk_rope_head_dim")
_YARN = (
    *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim"),
)
