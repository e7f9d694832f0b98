"""The shape of attention to a window and to compressed entries, as a value that imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..patterns.base import is_number, require_integer
from .indexer import IndexerConfig
from .rotary import NEIGHBOURS, RotaryConfig

FAR = RotaryConfig(theta=160_000.0, interleaved=True)
"""How DeepSeek-V4 turns what is in layers with entries; `NEIGHBOURS` is what it does in those without."""

INDEXER = IndexerConfig(index_topk=512, rotary=FAR)
"""What chooses entries there."""


@dataclass(frozen=True)
class CompressedConfig:
    """A layer of DeepSeek-V4 (arXiv 2606.19348), by the names of config.json. Defaults: the small model's CSA.

    `CSA`, `HCA` and `WINDOW_ONLY` are its three kinds of layers; `dataclasses.replace` gives them other sizes.

    >>> CSA.compress_rate, CSA.indexer.index_topk, HCA.compress_rate, HCA.indexer
    (4, 512, 128, None)

    Raises:
        ValueError: A field is out of its range; the message names the field, the value and the fix.
    """

    hidden_size: int = 4096
    """Width of the model."""
    num_attention_heads: int = 64
    """Query heads; all share one head that is key and value at once."""
    head_dim: int = 512
    """Features of a query, and of what is key and value."""
    q_lora_rank: int = 1024
    """Width that queries are made from."""
    o_groups: int = 8
    """Groups of heads that are brought to a low rank each on the way out."""
    o_lora_rank: int = 1024
    """That rank."""
    sliding_window: int = 128
    """The last tokens that are seen as they are, the query's own included."""
    qk_rope_head_dim: int = 64
    """How many of the features, the last ones, are turned by positions."""
    compress_rate: int = 4
    """Tokens to an entry; 0: there are no entries."""
    overlap: bool = True
    """Whether an entry is also made of the tokens of the one before."""
    indexer: IndexerConfig | None = INDEXER
    """What chooses the entries that a query sees; None: it sees all that are whole."""
    rotary: RotaryConfig = FAR
    """How features are turned; the last tokens and the entries alike."""
    norm_eps: float = 1e-6
    """Added to the mean square wherever vectors are normalised."""

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            object.__setattr__(self, name, require_integer("CompressedConfig", name, getattr(self, name), least=least))
        turned = self.qk_rope_head_dim
        fix = f"give an even number of at most head_dim={self.head_dim}"
        self._require("qk_rope_head_dim", turned % 2 == 0 and turned <= self.head_dim, fix)
        fix = f"give a divisor of num_attention_heads={self.num_attention_heads}"
        self._require("o_groups", self.num_attention_heads % self.o_groups == 0, fix)
        self._require("overlap", isinstance(self.overlap, bool), "give True or False")
        self._require("indexer", isinstance(self.indexer, IndexerConfig | None), "give an IndexerConfig, or None")
        if not self.compress_rate:
            self._require("indexer", self.indexer is None, "give None: without a compress_rate there are no entries")
            self._require("overlap", not self.overlap, "give False: without a compress_rate there are no entries")
        self._require("rotary", isinstance(self.rotary, RotaryConfig), "give a RotaryConfig")
        eps = self.norm_eps
        self._require("norm_eps", is_number(eps) and 0 < eps < 1, "give a small positive number")

    def entries(self, tokens: int) -> int:
        """How many entries so many tokens have."""
        return tokens // self.compress_rate if self.compress_rate else 0

    def _require(self, name: str, holds: bool, fix: str) -> None:
        if not holds:
            raise ValueError(f"CompressedConfig: {name} is {getattr(self, name)!r}; {fix}")


_INTEGERS = {
    **dict.fromkeys(("hidden_size", "num_attention_heads", "head_dim", "q_lora_rank"), 1),
    **dict.fromkeys(("o_groups", "o_lora_rank", "sliding_window"), 1),
    **dict.fromkeys(("qk_rope_head_dim", "compress_rate"), 0),
}

CSA = CompressedConfig()
"""Compressed sparse attention: entries of 4 tokens and the 4 before, of which an indexer chooses 512."""
HCA = CompressedConfig(compress_rate=128, overlap=False, indexer=None)
"""Heavily compressed attention: entries of 128 tokens, of which a query sees all that are whole."""
WINDOW_ONLY = CompressedConfig(compress_rate=0, overlap=False, indexer=None, rotary=NEIGHBOURS)
"""A layer without entries."""
