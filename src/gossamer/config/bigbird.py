"""The shape of a BigBird, as a value that imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..patterns.base import require_integer
from .encoder import EncoderConfig

KINDS = ("block_sparse", "original_full")


@dataclass(frozen=True)
class BigBirdConfig(EncoderConfig):
    """The shape of a BigBird encoder (arXiv 2007.14062): window, global and random blocks.

    >>> BigBirdConfig().longest
    4096

    Raises:
        ValueError: A field is out of its range; the message names the field, the value and the fix.
    """

    vocab_size: int = 50358
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = 4096
    sep_token_id: int = 66
    attention_type: str = "block_sparse"
    """`original_full` sees every token."""
    block_size: int = 64
    """Tokens of a block."""
    num_random_blocks: int = 3
    """Blocks that each block sees by chance."""
    use_bias: bool = True
    """Whether queries, keys and values have biases."""
    rescale_embeddings: bool = False
    """Whether token embeddings are multiplied by the square root of the width."""
    classifier_dropout: float | None = None
    """Share dropped in training inside the classification head; None: `hidden_dropout_prob`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("block_size", 1), ("num_random_blocks", 0)):
            object.__setattr__(self, name, require_integer("BigBirdConfig", name, getattr(self, name), least=least))
        for name in ("use_bias", "rescale_embeddings"):
            self._require(name, isinstance(getattr(self, name), bool), "give True or False")
        self._require("attention_type", self.attention_type in KINDS, f"give one of {', '.join(KINDS)}")
