"""The shape of a GPT-2, as a value that imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, TypeVar, get_args

from ..patterns import Causal, Dilated, Pattern, PerHead, Window
from ..patterns.base import is_number, require_integer
from .indexer import IndexerConfig
from .rotary import HALVES, RotaryConfig, YarnConfig
from .sparse import SparseAttentionConfig

Positions = Literal["learned", "rotary"]


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2 whose attention is dense, or sparse by a fixed pattern, or to the keys that indexers choose.

    >>> GPT2Config(n_head=6, n_embed=384).head_width
    64
    >>> GPT2Config(n_layer=2, windows=(32, 64), dilations=(1, 3), dilated_heads=2).layer_pattern(1)
    PerHead([(Causal() & Window(size=64), 10), (Causal() & Dilated(size=64, step=3), 2)])

    Raises:
        ValueError: A field is out of its range, the head counts of `sparse_config` do not sum to `n_head`,
            `windows` or `dilations` are not one for each layer, or there are two answers to what a layer sees.
    """

    vocab_size: int = 50304
    """Rows of the token table; 50304 is GPT-2's 50257 padded to a multiple of 128."""
    context_size: int = 1024
    """The longest sequence; where positions are learned, the rows of their table."""
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
    windows: tuple[int, ...] = ()
    """Keys that a head of each layer sees, the query included, from the bottom layer to the top; empty: see
    `use_sparse_attention`."""
    dilations: tuple[int, ...] = ()
    """Distance from one key to the next in the dilated heads of each layer, 1 being a plain window; empty: 1."""
    dilated_heads: int = 0
    """How many heads of a layer, its last ones, are dilated."""
    positions: Positions = "learned"
    """learned (a table that is added to the tokens) or rotary (queries and keys are turned by their positions)."""
    indexer: IndexerConfig | None = None
    """What chooses, in every layer, the keys that a query sees (DeepSeek Sparse Attention); None: nothing does."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_size", "n_layer", "n_head", "n_embed"):
            object.__setattr__(self, name, require_integer("GPT2Config", name, getattr(self, name), least=1))
        for name in ("bias", "use_sparse_attention"):
            self._require(name, isinstance(getattr(self, name), bool), "give True or False")
        self._require("dropout", is_number(self.dropout) and 0 <= self.dropout < 1, "give a share in [0, 1)")
        epsilon = self.layer_norm_epsilon
        self._require("layer_norm_epsilon", is_number(epsilon) and 0 < epsilon < 1, "give a small positive number")
        self._require(
            "n_embed",
            self.n_embed % self.n_head == 0,
            f"give a multiple of n_head={self.n_head}, as {64 * self.n_head}",
        )
        self._require(
            "positions", self.positions in get_args(Positions), f"give one of {', '.join(get_args(Positions))}"
        )
        if self.positions == "rotary":
            self._require("n_embed", self.head_width % 2 == 0, "rotary positions need an even width of each head")
        self._require_padding_beyond_the_vocabulary()
        self._require_heads_that_fit()
        self._require_layers_that_fit()
        self._require_one_attention()

    @property
    def head_width(self) -> int:
        """Features per head."""
        return self.n_embed // self.n_head

    @property
    def rotary(self) -> RotaryConfig | None:
        """How queries and keys are turned; None where positions are learned."""
        return HALVES if self.positions == "rotary" else None

    @property
    def known_tokens(self) -> int:
        """How many token ids mean something; ids from here to `vocab_size` are padding."""
        return self.vocab_size if self.unpadded_vocab_size is None else self.unpadded_vocab_size

    def layer_pattern(self, layer: int) -> Pattern:
        """What the heads of a layer see, counted from the bottom: its window, and in the last heads its dilation."""
        size, step = self.windows[layer], self.dilations[layer] if self.dilations else 1
        plain = Causal() & Window(size)
        if step == 1 or not self.dilated_heads:
            return plain
        groups = (plain, self.n_head - self.dilated_heads), (Causal() & Dilated(size, step), self.dilated_heads)
        return PerHead(tuple((pattern, heads) for pattern, heads in groups if heads))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` wrote; absent fields take their defaults.

        Raises:
            ValueError: A key is unknown (the message lists the known ones) or a value is out of range.
        """
        return _built(cls, settings)

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

    def _require_layers_that_fit(self) -> None:
        for name in ("windows", "dilations"):
            given = getattr(self, name)
            self._require(name, isinstance(given, tuple | list), f"give {self.n_layer} integers, or none")
            sizes = tuple(require_integer("GPT2Config", name, size, least=1) for size in given)
            self._require(name, len(sizes) in (0, self.n_layer), f"give one for each of n_layer={self.n_layer} layers")
            object.__setattr__(self, name, sizes)
        heads = require_integer("GPT2Config", "dilated_heads", self.dilated_heads, least=0)
        self._require("dilated_heads", heads <= self.n_head, f"give at most n_head={self.n_head}")
        if self.dilations and not self.windows:
            self._require("dilations", False, "give windows too, whose keys they spread")

    def _require_one_attention(self) -> None:
        if self.windows and self.use_sparse_attention:
            self._require("windows", False, "leave them out, or set use_sparse_attention=False: a layer follows one")
        if self.indexer is None:
            return
        self._require("indexer", isinstance(self.indexer, IndexerConfig), "give an IndexerConfig, or None")
        for name in ("use_sparse_attention", "windows"):
            if getattr(self, name):
                self._require(name, False, "leave it out where there is an indexer: it chooses the keys of every layer")


_TABLES = {
    "sparse_config": SparseAttentionConfig,
    "indexer": IndexerConfig,
    "rotary": RotaryConfig,
    "yarn": YarnConfig,
}
"""Fields that are tables of settings themselves."""

Config = TypeVar("Config")


def _built(owner: type[Config], settings: Mapping[str, Any]) -> Config:
    _require_known_keys(owner, settings)
    values = {
        name: _built(_TABLES[name], value) if name in _TABLES and isinstance(value, Mapping) else value
        for name, value in settings.items()
    }
    return owner(**values)


def _require_known_keys(owner: type, settings: object) -> None:
    known = [field.name for field in fields(owner)]  # type: ignore[bad-argument-type]
    if not isinstance(settings, Mapping):
        raise ValueError(f"{owner.__name__}: {settings!r} is no table of settings; give some of {', '.join(known)}")
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(f"{owner.__name__}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
