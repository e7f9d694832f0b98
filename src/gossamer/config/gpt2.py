"""The shape of a GPT-2, as a value that imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ..patterns.base import require_integer
from .sparse import SparseAttentionConfig


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2 whose attention is dense, or sparse when `use_sparse_attention` says so.

    >>> GPT2Config(n_head=6, n_embed=384).head_width
    64

    Raises:
        ValueError: A field is out of its range, or the head counts of `sparse_config` do not sum to `n_head`.
    """

    vocab_size: int = 50304
    """Rows of the token table; 50304 is GPT-2's 50257 padded to a multiple of 128."""
    context_size: int = 1024
    """Rows of the position table: the longest sequence."""
    n_layer: int = 12
    """Transformer blocks."""
    n_head: int = 12
    """Attention heads of each block."""
    n_embed: int = 768
    """Width of the model, a multiple of `n_head`."""
    dropout: float = 0.0
    """Share dropped in training from embeddings, attention weights and residual branches."""
    bias: bool = True
    """Whether linear layers and layer norms have biases."""
    use_sparse_attention: bool = False
    """Whether the blocks attend by `SparseAttention` or by `CausalSelfAttention`."""
    sparse_config: SparseAttentionConfig | None = None
    """What sparse attention sees; None is `SparseAttentionConfig().for_heads(n_head)`."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in layer norms."""
    unpadded_vocab_size: int | None = None
    """Tokens from here on are padding, with logits of minus infinity; None: no padding."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_size", "n_layer", "n_head", "n_embed"):
            object.__setattr__(self, name, require_integer("GPT2Config", name, getattr(self, name), least=1))
        for name in ("bias", "use_sparse_attention"):
            self._require(name, isinstance(getattr(self, name), bool), "give True or False")
        self._require("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "give a share in [0, 1)")
        epsilon = self.layer_norm_epsilon
        self._require("layer_norm_epsilon", _is_number(epsilon) and 0 < epsilon < 1, "give a small positive number")
        self._require(
            "n_embed",
            self.n_embed % self.n_head == 0,
            f"give a multiple of n_head={self.n_head}, as {64 * self.n_head}",
        )
        self._require_padding_beyond_the_vocabulary()
        self._require_heads_that_fit()

    @property
    def head_width(self) -> int:
        """Features per head."""
        return self.n_embed // self.n_head

    @property
    def known_tokens(self) -> int:
        """How many token ids mean something; ids from here to `vocab_size` are padding."""
        return self.vocab_size if self.unpadded_vocab_size is None else self.unpadded_vocab_size

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` wrote; absent fields take their defaults.

        Raises:
            ValueError: A key is unknown (the message lists the known ones) or a value is out of range.
        """
        _require_known_keys(cls, settings)
        values = dict(settings)
        if isinstance(sparse := values.get("sparse_config"), Mapping):
            _require_known_keys(SparseAttentionConfig, sparse)
            values["sparse_config"] = SparseAttentionConfig(**sparse)
        return cls(**values)

    def _require(self, name: str, holds: bool, fix: str) -> None:
        if not holds:
            raise ValueError(f"GPT2Config: {name} is {getattr(self, name)!r}; {fix}")

    def _require_padding_beyond_the_vocabulary(self) -> None:
        name, size = "unpadded_vocab_size", self.unpadded_vocab_size
        if size is not None and require_integer("GPT2Config", name, size, least=1) > self.vocab_size:
            self._require(name, False, f"give at most vocab_size={self.vocab_size}, the rows of the token table")

    def _require_heads_that_fit(self) -> None:
        sparse = self.sparse_config
        if sparse is None:
            return
        self._require("sparse_config", isinstance(sparse, SparseAttentionConfig), "give a SparseAttentionConfig")
        if self.use_sparse_attention and sparse.local_heads + sparse.global_heads != self.n_head:
            raise ValueError(
                f"GPT2Config: sparse_config has local_heads={sparse.local_heads} and "
                f"global_heads={sparse.global_heads}, which do not sum to n_head={self.n_head}; "
                f"pass sparse_config=config.for_heads({self.n_head})"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_known_keys(owner: type, settings: object) -> None:
    known = [field.name for field in fields(owner)]
    if not isinstance(settings, Mapping):
        raise ValueError(f"{owner.__name__}: {settings!r} is no table of settings; give some of {', '.join(known)}")
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(f"{owner.__name__}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
