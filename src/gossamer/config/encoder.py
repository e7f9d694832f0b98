"""The shape of a BERT-like encoder, as a value that imports no torch. Fields have the names of config.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..patterns.base import is_number, require_integer

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu")
"""`gelu` is exact; the other three are its tanh form, which files know by three names."""
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder of post-LN blocks (BERT, RoBERTa), whatever its attention is.

    >>> EncoderConfig(hidden_size=128, num_attention_heads=4).head_width
    32

    Raises:
        ValueError: A field is out of its range; the message names the field, the value and the fix.
    """

    vocab_size: int = 30522
    """Rows of the token table."""
    hidden_size: int = 768
    """Width of the model, a multiple of `num_attention_heads`."""
    num_hidden_layers: int = 12
    """Blocks."""
    num_attention_heads: int = 12
    """Attention heads of each block."""
    intermediate_size: int = 3072
    """Width between a block's two linear layers."""
    hidden_act: str = "gelu"
    """What is applied there."""
    hidden_dropout_prob: float = 0.1
    """Share dropped in training from embeddings and from what a block adds."""
    attention_probs_dropout_prob: float = 0.1
    """Share of attention weights dropped in training."""
    max_position_embeddings: int = 512
    """Rows of the position table."""
    type_vocab_size: int = 2
    """Kinds of token: the first text and the second."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in layer norms."""
    initializer_range: float = 0.02
    """Standard deviation of a new model's weights."""
    pad_token_id: int = 0
    """The token that fills a batch up; its row of the token table gets no gradient."""
    sep_token_id: int = 2
    """The token that ends a question."""
    num_labels: int = 2
    """Classes of the classification head."""
    problem_type: str | None = None
    """What the classification head learns; None: what its targets look like."""

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            object.__setattr__(self, name, require_integer(type(self).__name__, name, getattr(self, name), least=least))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            self._require(name, is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1, "give one in [0, 1)")
        for name in ("layer_norm_eps", "initializer_range"):
            self._require(name, is_number(getattr(self, name)) and 0 < getattr(self, name) < 1, "give a small number")
        self._require("hidden_act", self.hidden_act in ACTIVATIONS, f"give one of {', '.join(ACTIVATIONS)}")
        self._require("problem_type", self.problem_type in (None, *PROBLEMS), f"give one of {', '.join(PROBLEMS)}")
        self._require("pad_token_id", self.pad_token_id < self.vocab_size, f"give one below {self.vocab_size}")
        heads = self.num_attention_heads
        self._require("hidden_size", self.hidden_size % heads == 0, f"give a multiple of num_attention_heads={heads}")

    @property
    def head_width(self) -> int:
        """Features per head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that has a position for each."""
        return self.max_position_embeddings

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)

    def _require(self, name: str, holds: bool, fix: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}; {fix}")


_INTEGERS = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "max_position_embeddings": 1,
    "type_vocab_size": 1,
    "pad_token_id": 0,
    "sep_token_id": 0,
    "num_labels": 1,
}
