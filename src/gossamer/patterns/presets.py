"""Well-known patterns by the name of their paper."""

from __future__ import annotations

from .base import Pattern
from .causal import Causal
from .dilated import Dilated
from .per_head import PerHead
from .random_blocks import RandomBlocks
from .sinks import Sinks
from .strided import Strided
from .tokens import Tokens
from .window import Window


def streaming(window: int, sinks: int = 4) -> Pattern:
    """Causal window plus the first tokens, which keep a stream stable (StreamingLLM, arXiv 2309.17453)."""
    return Causal() & (Window(window) | Sinks(sinks))


def sparse_transformer(stride: int) -> Pattern:
    """Causal window of `stride` plus every `stride`-th key (Sparse Transformers, arXiv 1904.10509, strided form)."""
    return Causal() & (Window(stride) | Strided(stride, offset=stride - 1))


def longformer(window: int, global_tokens: tuple[int, ...] = (0,), dilation: int = 1) -> Pattern:
    """Two-sided window plus symmetric global tokens (Longformer, arXiv 2004.05150).

    `window` is the paper's two-sided, even width: `window // 2` keys on each side and the query itself.
    """
    local = Dilated(window // 2 + 1, dilation) if dilation > 1 else Window(window // 2 + 1)
    tokens = Tokens(global_tokens)
    return local | tokens | tokens.T


def bigbird(block: int = 64, random: int = 3, seed: int = 0) -> Pattern:
    """Causal form of BigBird (arXiv 2007.14062): a window of about three blocks, two global blocks, random blocks."""
    return Causal() & (Window(2 * block) | Sinks(2 * block) | RandomBlocks(block, random, seed))


def local_global(local_heads: int, global_heads: int, window: int, every: int = 10) -> Pattern:
    """The design document's pattern: some heads see a causal window, the others every `every`-th token of the past."""
    return PerHead([(Causal() & Window(window), local_heads), (Causal() & Strided(every), global_heads)])
