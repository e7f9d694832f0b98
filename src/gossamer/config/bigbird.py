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
    random_seed: int = 0
    """Random blocks are drawn from it, for each layer and head."""
    random_among: int | None = None
    """Draw them among the first so many blocks (the paper's release: 1,024 tokens); None: among all."""
    extra_tokens: int = 0
    """Tokens in front that are global in place of the first and the last block (the paper's ETC); nothing is random."""
    use_bias: bool = True
    """Whether queries, keys and values have biases."""
    rescale_embeddings: bool = False
    """Whether token embeddings are multiplied by the square root of the width."""
    classifier_dropout: float | None = None
    """Share dropped in training inside the classification head; None: `hidden_dropout_prob`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"block_size": 1, "num_random_blocks": 0, "random_seed": 0, "random_among": 1, "extra_tokens": 0}
        for name in least.keys() - ({"random_among"} if self.random_among is None else set()):
            object.__setattr__(self, name, require_integer("BigBirdConfig", name, getattr(self, name), least[name]))
        self._require("random_seed", self.random_seed < 2**31, "give one below 2**31")
        for name in ("use_bias", "rescale_embeddings"):
            self._require(name, isinstance(getattr(self, name), bool), "give True or False")
        self._require("attention_type", self.attention_type in KINDS, f"give one of {', '.join(KINDS)}")
