"""Well-known patterns by the name of their paper."""

from __future__ import annotations

from .base import Pattern, require_integer
from .block_window import BlockWindow
from .causal import Causal
from .dilated import Dilated
from .global_blocks import GlobalBlocks
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


def bigbird_itc(
    blocks: int,
    heads: int,
    block: int = 64,
    random: int = 3,
    *,
    among: int | None = None,
    seed: int = 0,
    layer: int = 0,
) -> Pattern:
    """BigBird's encoder over `blocks` blocks (arXiv 2007.14062, "internal transformer construction").

    A block sees itself and its neighbours; the first and the last see all and are seen by all; every other one sees
    `random` more, drawn for each head of each layer from `seed`, among the first `among` blocks (1,024 tokens in the
    paper's release) or all. A short sequence has no more to draw from, and up to 4 blocks it is full attention.

    Raises:
        ValueError: A number is no integer, or too small.
    """
    for name, number in {"blocks": blocks, "heads": heads}.items():
        require_integer("bigbird_itc", name, number, least=1)
    for name, number in {"random": random, "seed": seed, "layer": layer}.items():
        require_integer("bigbird_itc", name, number, least=0)
    if layer >= 2**16 or heads >= 2**16 or seed >= 2**31:
        raise ValueError(
            f"bigbird_itc: layer is {layer}, heads {heads}, seed {seed}; give below 2**16, 2**16 and 2**31"
        )
    ends = GlobalBlocks(block, (0, blocks - 1))
    fixed = ends | ends.T | BlockWindow(block)
    if not random:
        return fixed
    among = None if among is None else min(among, blocks)
    seeds = (seed << 32 | layer << 16 | head for head in range(heads))
    return fixed | PerHead([(RandomBlocks(block, random, own, blocks, among), 1) for own in seeds])


def bigbird_etc(extra: int, block: int = 64) -> Pattern:
    """BigBird's encoder with `extra` tokens in front that see all and are seen by all, and a window of three blocks
    over the others (arXiv 2007.14062, "extended transformer construction"; it draws no random blocks)."""
    front = Sinks(extra)
    return front | front.T | BlockWindow(block, start=extra)


def prefix_lm(prefix: int, window: int) -> Pattern:
    """A document of `prefix` tokens that sees itself both ways in a window, and what is written about it.

    What comes after the document sees all of it and its own past; the document sees nothing of that. This is the prefix
    language model of T5 (arXiv 1910.10683, section 3.2.1) with a sparse prefix.

    >>> prefix_lm(prefix=3, window=2).dense_mask(5).astype(int).tolist()
    [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    """
    document = Sinks(prefix)
    return (Window(window) & document) | (Causal() & ~document.T)


def local_global(local_heads: int, global_heads: int, window: int, every: int = 10) -> Pattern:
    """The design document's pattern: some heads see a causal window, the others every `every`-th token of the past."""
    return PerHead([(Causal() & Window(window), local_heads), (Causal() & Strided(every), global_heads)])
