"""`BigBirdAttention`: attention over a window of blocks, global blocks and random blocks (arXiv 2007.14062)."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int32
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..attention import attend
from ..patterns import Blocks, Causal, Pattern, PerHead, presets

logger = logging.getLogger(__name__)

FULL_BLOCKS = 4
"""Up to this many blocks, the window and the two global blocks are everything: with a fifth, the second block does not
see the fourth, nor draw it."""


class BigBirdAttention(nn.Module):
    """Self-attention of BigBird's encoder over a sequence of any length, in both of the paper's constructions.

    By default ("ITC") each block of tokens sees itself and its neighbours, the first and the last block see all and are
    seen by all, and every other block sees `random` more: drawn for each head and layer from `seed`, the same in
    training and in evaluation, never one that is seen anyway. With `extra` tokens in front ("ETC") these see all and are
    seen by all, and the others see the window alone. The last block may be shorter than the others.

    A short sequence has fewer blocks to draw from, and `is_full` says whether a length is full attention altogether;
    the first such call is logged too.

    >>> BigBirdAttention(32, heads=2, block=4)(torch.zeros(1, 50, 32)).shape
    torch.Size([1, 50, 32])

    Args:
        width: Features of a token, a multiple of `heads`.
        block: Tokens of a block.
        random: Random blocks a block.
        among: Draw them from the first `among` blocks alone (the paper's release: 1,024 tokens); None: from all.
        extra: Tokens in front that are global instead of the first and the last block; then nothing is random.
        layer: Which layer this is: each one draws blocks of its own.
        full: Every token sees all (`original_full` in other libraries).
        bias: Whether queries, keys and values have biases; the output has one.
        dropout: Share of attention weights dropped in training. BigBird's release drops none.

    Raises:
        ValueError: A size is out of its range; the message names the argument, the value and the fix.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        block: int = 64,
        random: int = 3,
        among: int | None = None,
        extra: int = 0,
        seed: int = 0,
        layer: int = 0,
        full: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
