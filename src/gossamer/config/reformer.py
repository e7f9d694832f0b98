"""The shape of a Reformer, as a value that imports no torch. Fields have the names of config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, lcm, prod
from typing import Any, Literal, get_args

from ..patterns.base import is_number, require_buckets, require_integer, require_some
from .encoder import ACTIVATIONS, PROBLEMS

Layer = Literal["local", "lsh"]
Rules = Literal["trax", "paper", "lucidrains"]


@dataclass(frozen=True)
class ReformerConfig:
    """The shape of a Reformer (arXiv 2001.04451): reversible layers of local attention and of attention by hashing.

    >>> ReformerConfig(attn_layers=["local", "lsh"], local_attn_chunk_length=48).padded(100)
    192

    Raises:
        ValueError: A field is out of its range; the message names the field, the value and the fix.
    """

    vocab_size: int = 320
    """Rows of the token table."""
    hidden_size: int = 256
    """Width of each of the two streams."""
    attn_layers: Sequence[Layer] = ("local", "lsh", "local", "lsh", "local", "lsh")
    """What each layer attends by."""
    num_attention_heads: int = 12
    """Attention heads of each layer."""
    attention_head_size: int = 64
    """Features per head."""
    feed_forward_size: int = 512
    """Width between a layer's two linear layers."""
    hidden_act: str = "relu"
    """What is applied there."""
    is_decoder: bool = False
    """Whether tokens see only what stands before them."""
    max_position_embeddings: int = 4096
    """The longest sequence; also the rows of the position table, where positions are not axial."""
    axial_pos_embds: bool = True
    """Whether positions are places on a grid."""
    axial_pos_shape: Sequence[int] = (64, 64)
    """The grid's sides, whose product is at least the length of any sequence."""
    axial_pos_embds_dim: Sequence[int] = (64, 192)
    """Features of each side, `hidden_size` in all."""
    local_attn_chunk_length: int = 64
    """Tokens of a chunk in local layers."""
    local_num_chunks_before: int = 1
    """Chunks before its own that a token sees there."""
    local_num_chunks_after: int = 0
    """Chunks after its own that it sees; 0 where `is_decoder`."""
    lsh_attn_chunk_length: int = 64
    """Tokens of a chunk of sorted tokens in LSH layers."""
    lsh_num_chunks_before: int = 1
    """Chunks before its own that a token meets there."""
    lsh_num_chunks_after: int = 0
    """Chunks after its own that it meets; 0 where `is_decoder`."""
    num_hashes: int = 1
    """Rounds of hashing."""
    num_buckets: int | tuple[int, ...] | None = None
    """Buckets of a round, or of each rotation whose numbers make one; None chooses by the length."""
    lsh_rules: Rules = "trax"
    """Whose details LSH layers follow; files of transformers, which do not say it, follow trax."""
    hidden_dropout_prob: float = 0.05
    """Share dropped in training from embeddings and from what a layer adds."""
    local_attention_probs_dropout_prob: float = 0.05
    """Share of attention weights dropped in training in local layers."""
    lsh_attention_probs_dropout_prob: float = 0.0
    """The same in LSH layers."""
    chunk_size_feed_forward: int = 0
    """Positions that are `feed_forward_size` wide at a time; 0: all."""
    chunk_size_lm_head: int = 0
    """Tokens that have logits at a time when the loss is taken; 0 chooses by the device."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in layer norms."""
    initializer_range: float = 0.02
    """Standard deviation of a new model's weights."""
    axial_norm_std: float = 1.0
    """That of its axial positions."""
    num_labels: int = 2
    """Classes of the classification head."""
    problem_type: str | None = None
    """What the classification head learns; None: what its targets look like."""
    classifier_dropout: float | None = None
    """Share dropped in the classification head; None: `hidden_dropout_prob`."""

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            object.__setattr__(self, name, require_integer("ReformerConfig", name, getattr(self, name), least=least))
        object.__setattr__(self, "num_buckets", require_buckets("ReformerConfig", "num_buckets", self.num_buckets))
        for name in ("axial_pos_shape", "axial_pos_embds_dim"):
            entries, entry = getattr(self, name), f"an entry of {name}"
            entries = require_some("ReformerConfig", name, entries) if entries or self.axial_pos_embds else ()
            entries = tuple(require_integer("ReformerConfig", entry, each, least=1) for each in entries)
            object.__setattr__(self, name, entries)
        for name in ("is_decoder", "axial_pos_embds"):
            self._require(name, isinstance(getattr(self, name), bool), "give True or False")
        for name in _SHARES:
            self._require(name, _is_share(getattr(self, name)), "give one in [0, 1)")
        self._require(
            "classifier_dropout", self.classifier_dropout is None or _is_share(self.classifier_dropout), _NONE
        )
        for name in ("layer_norm_eps", "initializer_range"):
            self._require(name, is_number(getattr(self, name)) and 0 < getattr(self, name) < 1, "give a small number")
        fits = is_number(self.axial_norm_std) and 0 < self.axial_norm_std < inf
        self._require("axial_norm_std", fits, "give a finite number above 0")
        layers, kinds = self.attn_layers, get_args(Layer)
        fits = isinstance(layers, list | tuple) and bool(layers) and all(layer in kinds for layer in layers)
        self._require("attn_layers", fits, f"give a list of {' and '.join(kinds)}")
        object.__setattr__(self, "attn_layers", tuple(layers))
        self._require("lsh_rules", self.lsh_rules in get_args(Rules), f"give one of {', '.join(get_args(Rules))}")
        self._require("hidden_act", self.hidden_act in ACTIVATIONS, f"give one of {', '.join(ACTIVATIONS)}")
        self._require("problem_type", self.problem_type in (None, *PROBLEMS), f"give one of {', '.join(PROBLEMS)}")
        for name in ("local_num_chunks_after", "lsh_num_chunks_after"):
            self._require(name, not (self.is_decoder and getattr(self, name)), "give 0: is_decoder sees nothing ahead")
        if self.axial_pos_embds:
            total, sides = sum(self.axial_pos_embds_dim), len(self.axial_pos_shape)
            self._require("axial_pos_embds_dim", total == self.hidden_size, f"make it sum to {self.hidden_size}")
            self._require("axial_pos_embds_dim", len(self.axial_pos_embds_dim) == sides, f"give {sides}: one a side")

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that has a position for each."""
        return min(self.max_position_embeddings, prod(self.axial_pos_shape) if self.axial_pos_embds else 2**62)

    def padded(self, length: int) -> int:
        """To how many tokens a sequence is filled up: a multiple of every layer's chunk, unless it is one chunk."""
        chunks = {"local": self.local_attn_chunk_length, "lsh": self.lsh_attn_chunk_length}
        used = [chunks[layer] for layer in self.attn_layers]
        return length if length <= min(used) else -(-length // lcm(*used)) * lcm(*used)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)

    def _require(self, name: str, holds: bool, fix: str) -> None:
        if not holds:
            raise ValueError(f"ReformerConfig: {name} is {getattr(self, name)!r}; {fix}")


_INTEGERS = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_attention_heads": 1,
    "attention_head_size": 1,
    "feed_forward_size": 1,
    "max_position_embeddings": 1,
    "local_attn_chunk_length": 1,
    "local_num_chunks_before": 0,
    "local_num_chunks_after": 0,
    "lsh_attn_chunk_length": 1,
    "lsh_num_chunks_before": 0,
    "lsh_num_chunks_after": 0,
    "num_hashes": 1,
    "chunk_size_feed_forward": 0,
    "chunk_size_lm_head": 0,
    "num_labels": 1,
}
_SHARES = ("hidden_dropout_prob", "local_attention_probs_dropout_prob", "lsh_attention_probs_dropout_prob")
_NONE = "give one in [0, 1), or None"


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1
