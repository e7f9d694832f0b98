"""The patterns that every sweep runs over. A new pattern is one entry."""

from gossamer.patterns import (
    Blocks,
    BlockWindow,
    Causal,
    Dilated,
    Documents,
    Excerpt,
    GlobalBlocks,
    Packed,
    Pattern,
    PerHead,
    RandomBlocks,
    Section,
    Sinks,
    Strided,
    Tokens,
    Window,
    presets,
)

CHECKERED = ["10010", "01001", "00100", "11010", "01111"]

PATTERNS: dict[str, Pattern] = {
    "causal": Causal(),
    "window": Window(20),
    "causal window": Causal() & Window(20),
    "window of one": Window(1),
    "dilated": Dilated(6, step=4),
    "causal dilated": Causal() & Dilated(10, step=3),
    "strided": Strided(7),
    "causal strided": Causal() & Strided(6, offset=5),
    "sinks": Sinks(5),
    "tokens": Tokens([0, 3, 40, 41, 120]),
    "rows": Tokens([2, 64, 100]).T,
    "blocks": Blocks(32, CHECKERED),
    "small blocks": Blocks(5, CHECKERED),
    "full and partial": Blocks(32, CHECKERED) & ~Window(5),
    "random blocks": RandomBlocks(16, count=2, seed=1),
    "random blocks of nine": RandomBlocks(16, count=2, seed=1, blocks=9),
    "few random blocks": RandomBlocks(6, count=3, seed=2, blocks=20, among=6),
    "block window": BlockWindow(6, reach=2, start=9),
    "global blocks": GlobalBlocks(16, [0, 3, 8]),
    "documents": Documents([3, 60, 1, 70]),
    "packed": Causal() & Documents([3, 60, 1, 70]),
    "packed window": Causal() & Window(12) & Documents([30, 40, 60]),
    "packed dilated": Dilated(5, step=4) & Documents([30, 40, 60]),
    "packed anew": Packed(presets.streaming(9, sinks=3), [50, 1, 85]),
    "excerpt": Excerpt(presets.streaming(30, sinks=3), kept=(0, 1, 2, 9), start=40),
    "section": Section(presets.streaming(30, sinks=3), [(60, 100, 1), (110, 206, 1)], [(0, 6, 2), (31, 164, 1)]),
    "everything": Causal() | Causal().T,
    "nothing": Causal() & ~Causal(),
    "the future": ~Causal(),
    "a gap": Causal() & Window(60) & ~Window(9),
    "off the step": Causal() & Window(50) & ~Dilated(20, step=3),
    "streaming": presets.streaming(16, sinks=3),
    "sparse transformer": presets.sparse_transformer(12),
    "longformer": presets.longformer(16, (0, 31, 90)),
    "dilated longformer": presets.longformer(12, (0, 90), dilation=3),
    "bigbird": presets.bigbird(block=16, random=2, seed=3),
    "bigbird encoder": presets.bigbird_itc(blocks=9, heads=2, block=16, random=2, seed=3),
    "bigbird encoder of few": presets.bigbird_itc(blocks=17, heads=2, block=8, random=2, among=6, layer=1),
    "bigbird with extra tokens": presets.bigbird_etc(extra=20, block=16),
    "prefix language model": presets.prefix_lm(70, window=9),
    "both ways": RandomBlocks(16, 1, seed=1) | RandomBlocks(16, 1, seed=2).T | Window(8),
    "tangled": (~(Strided(5) | RandomBlocks(8, 2, 0)) & Window(30)) | (Sinks(4) & ~Tokens([1, 2]).T),
    "local and global": presets.local_global(2, 1, window=16, every=10),
    "a pattern a head": PerHead([(Window(9), 1), (Blocks(32, CHECKERED), 2), (Strided(4).T, 1)]) & Causal(),
    "uneven heads": PerHead([(Causal(), 1), (Causal() & Window(5), 3), (Sinks(2), 2)]),
}

LENGTH = 136
"""Long enough that every pattern above shows all it has: three rows of tiles, every document and token."""

HEADS = {name: pattern.head_cuts[-1] if pattern.head_cuts else 2 for name, pattern in PATTERNS.items()}


def looks_ahead(pattern: Pattern) -> bool:
    """Whether some query sees a later key."""
    mask = pattern.dense_mask(LENGTH)
    return bool((mask & ~Causal().dense_mask(LENGTH)).any())


CAUSAL = {name: pattern for name, pattern in PATTERNS.items() if not looks_ahead(pattern)}
REGULAR = {
    "causal": Causal(),
    "causal window": Causal() & Window(512),
    "causal dilated": Causal() & Dilated(64, step=16),
    "causal strided": Causal() & Strided(1000),
    "streaming": presets.streaming(1024),
    "sparse transformer": presets.sparse_transformer(512),
    "longformer": presets.longformer(512, tuple(range(0, 1000, 10))),
    "packed": Causal() & Documents([2**14] * 64),
    "local and global": presets.local_global(8, 4, window=512, every=1000),
    "a gap": Causal() & Window(4096) & ~Window(512),
}
"""Patterns with a closed form, at the sizes of a million tokens."""
