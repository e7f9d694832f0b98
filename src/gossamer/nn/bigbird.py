"""`BigBirdAttention`: attention over a window of blocks, global blocks and random blocks (arXiv 2007.14062)."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..attention import attend
from ..config import BigBirdConfig
from ..patterns import Blocks, Causal, Pattern, PerHead, presets
from .heads import merged, split

logger = logging.getLogger(__name__)

FULL_BLOCKS = 4
"""So many blocks are covered by the window and the two ends alone; of five, the second never sees the fourth."""


class BigBirdAttention(nn.Module):
    """Self-attention of a BigBird encoder's layer, exact at any length, the same in training and in evaluation.

    Each block of tokens sees itself and its neighbours, the first and the last block see all and are seen by all, and
    every other one sees `num_random_blocks` more, drawn for each layer and head, and none that it sees anyway (the
    paper's ITC). With `extra_tokens` in front of the text these are global instead, and nothing is random (its ETC).
    The last block may be shorter than the others: nobody pads.

    A short sequence has fewer blocks to draw from, or none; `is_full` says of a length whether that is full attention,
    and the first such call of a process is logged; of a compiled model, the first such length that is traced.

    >>> attention = BigBirdAttention(BigBirdConfig(hidden_size=32, num_attention_heads=2, block_size=4), layer=3)
    >>> attention(torch.zeros(1, 50, 32)).shape
    torch.Size([1, 50, 32])

    Args:
        layer: Which layer it is in: each one draws blocks of its own.
    """

    def __init__(self, config: BigBirdConfig, layer: int = 0):
        super().__init__()
        width = config.hidden_size
        self.config, self.layer, self.heads = config, layer, config.num_attention_heads
        self.query = nn.Linear(width, width, bias=config.use_bias)
        self.key = nn.Linear(width, width, bias=config.use_bias)
        self.value = nn.Linear(width, width, bias=config.use_bias)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        within: Int32[Tensor, "B 2"] | None = None,
        random_blocks: Int[Tensor, "H M R"] | NDArray[np.integer] | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Attention of `x` to itself.

        Args:
            within: Sequence b is positions `within[b, 0]` ... `within[b, 1] - 1` alone; the rest is padding, which
                nobody sees and which attends to nothing. Blocks are counted over the padded row.
            random_blocks: For each head and each block but the first and the last, the blocks to see in place of those
                that are drawn here: another implementation's. One that is named twice, or is seen anyway, counts once.
                Read on the host.

        Raises:
            ValueError: As `on_host` does.
        """
        length = x.shape[1]
        pattern = self.pattern(length) if random_blocks is None else self._handed_over(length, random_blocks)
        self._say_where_full(length)
        projections = self.query, self.key, self.value
        q, k, v = (split(project(x), self.heads) for project in projections)
        out = attend(q, k, v, pattern, within=within, dropout=self._dropped)
        return self.output(merged(out))

    def pattern(self, length: int) -> Pattern:
        """Who sees whom among `length` tokens."""
        if self._is_dense:
            return EVERYTHING
        if self.config.extra_tokens:
            return presets.bigbird_etc(self.config.extra_tokens, self.config.block_size)
        drawn = _itc if torch.compiler.is_compiling() else _kept_itc  # a compiler looks through caches, and warns
        return drawn(self.config, self.layer, self._blocks(length))

    def on_host(
        self, random_blocks: Int[Tensor, "H M R"] | NDArray[np.integer], length: int
    ) -> Int[NDArray[np.int64], "H M R"]:
        """Random blocks for `length` tokens, checked, as a forward reads them.

        Raises:
            ValueError: They do not fit the sequence, or nothing is random here.
        """
        if self._is_dense or self.config.extra_tokens:
            raise ValueError("random_blocks is given, but nothing is random in this attention; leave it out")
        drawn = random_blocks.cpu().numpy() if isinstance(random_blocks, Tensor) else np.asarray(random_blocks)
        blocks, whole = self._blocks(length), drawn.dtype.kind in "iu"
        fits = whole and drawn.ndim == 3 and drawn.shape[:2] == (self.heads, max(blocks - 2, 0))
        if not fits or (drawn.size and not 0 <= drawn.min() <= drawn.max() < blocks):
            values = f", {drawn.min()} to {drawn.max()}" if whole and drawn.size else ""
            raise ValueError(
                f"random_blocks has shape {drawn.shape} of {drawn.dtype}{values} in layer {self.layer}; give integers "
                f"[{self.heads} heads, {max(blocks - 2, 0)} blocks, any number], each from 0 to {blocks - 1}"
            )
        return drawn.astype(np.int64)

    def is_full(self, length: int) -> bool:
        """Whether every one of `length` tokens sees all."""
        extra = self.config.extra_tokens
        few = length <= extra + 2 * self.config.block_size if extra else self._blocks(length) <= FULL_BLOCKS
        return self._is_dense or few

    @property
    def _is_dense(self) -> bool:
        return self.config.attention_type == "original_full"

    @property
    def _dropped(self) -> float:
        """As the release does it: sparse attention drops nothing."""
        return self.config.attention_probs_dropout_prob if self.training and self._is_dense else 0.0

    def _blocks(self, length: int) -> int:
        return max(-(-length // self.config.block_size), 1)

    def _handed_over(self, length: int, random_blocks: Tensor | NDArray[np.integer]) -> Pattern:
        drawn, blocks = self.on_host(random_blocks, length), self._blocks(length)
        seen = np.zeros((self.heads, blocks, blocks), bool)
        np.put_along_axis(seen[:, 1:-1], drawn, True, axis=2)
        return presets.bigbird_itc(blocks, self.heads, self.config.block_size, random=0) | PerHead(
            [(Blocks(self.config.block_size, own), 1) for own in seen]
        )

    def _say_where_full(self, length: int) -> None:
        # Where a compiler knows no length, asking for one would tie its graph to it.
        if not self._is_dense and statically_known_true(self.is_full(length)):
            _say_full(self.config.block_size, self.config.extra_tokens)


EVERYTHING: Pattern = Causal() | ~Causal()


def _itc(config: BigBirdConfig, layer: int, blocks: int) -> Pattern:
    return presets.bigbird_itc(
        blocks,
        config.num_attention_heads,
        config.block_size,
        config.num_random_blocks,
        among=config.random_among,
        seed=config.random_seed,
        layer=layer,
    )


_kept_itc = lru_cache(maxsize=256)(_itc)
"""One object for each layer and number of blocks: its text is made once."""


@torch.compiler.assume_constant_result  # so a compiler calls it while it traces, and puts nothing in the graph
def _say_full(block: int, extra: int) -> None:
    _say_once(block, extra)


@lru_cache(maxsize=256)
def _say_once(block: int, extra: int) -> None:
    """Once for each kind of attention."""
    most = extra + 2 * block if extra else FULL_BLOCKS * block
    logger.warning("BigBird's attention over blocks of %d is full attention up to %d tokens, as here", block, most)
