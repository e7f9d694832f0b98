"""Draws the pictures of the pages with the library itself: `python docs/images/make.py`."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from gossamer import plan as terms
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
from gossamer.plan import Term, plan

LENGTH, CELL, MARGIN, LINE = 24, 8, 16, 16
SEEN, HIDDEN, INK = "#1f7a8c", "#e6e9ec", "#4a5560"
TERMS = {terms.Band: SEEN, terms.Columns: "#e08a2c", terms.Rows: "#8a63b3", terms.Blocks: "#6d9b35"}
Layers = list[tuple[str, np.ndarray]]
"""Colour and pairs [Q, K] of what a panel shows, one over the other."""

FRAME = f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{{width}}" height="{{height}}"
 viewBox="0 0 {{width}} {{height}}" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">
<pattern id="hidden" width="{CELL}" height="{CELL}" patternUnits="userSpaceOnUse">
<rect width="{CELL - 1}" height="{CELL - 1}" fill="{HIDDEN}"/>
</pattern>
<rect width="{{width}}" height="{{height}}" fill="#ffffff"/>
{{body}}
</svg>
"""

DRAWINGS: dict[str, Pattern] = {
    "causal": Causal(),
    "window": Causal() & Window(6),
    "two-sided-window": Window(4),
    "dilated": Causal() & Dilated(4, step=3),
    "strided": Causal() & Strided(every=5),
    "sinks": Causal() & (Window(5) | Sinks(2)),
    "tokens": Window(3) | Tokens([0, 11]) | Tokens([0, 11]).T,
    "blocks": Blocks(6, ["1000", "1100", "0110", "1011"]),
    "block-window": BlockWindow(3, reach=1),
    "global-blocks": GlobalBlocks(3, [0, 7]) | GlobalBlocks(3, [0, 7]).T,
    "random-blocks": Causal() & (Window(4) | RandomBlocks(3, count=1, seed=1)),
    "random-blocks-of-eight": RandomBlocks(3, count=1, seed=1, blocks=8),
    "bigbird": presets.bigbird_itc(blocks=8, heads=1, block=3, random=1).for_head(0),
    "bigbird-extra": presets.bigbird_etc(extra=3, block=3),
    "documents": Causal() & Documents([9, 4, 11]),
    "packed": Packed(Causal() & (Window(3) | Sinks(1)), [9, 4, 11]),
    "excerpt": Excerpt(Causal() & (Window(6) | Sinks(2)), kept=(0, 1), start=40),
    "section": Section(Causal() & (Window(6) | Strided(5)), [(40, 64, 1)], [(0, 40, 5), (48, 64, 1)]),
    "not": Causal() & ~Window(6),
}
PER_HEAD = PerHead([(Causal() & Window(6), 8), (Causal() & Strided(5), 4)])
PLANNED: dict[str, Pattern] = {
    "Band and Columns": Causal() & (Window(6) | Strided(5)),
    "Band, Columns and Rows": presets.longformer(window=6, global_tokens=(0, 12)),
    "Band and Blocks": Causal() & (Window(4) | RandomBlocks(3, count=1, seed=1)),
}
OVERVIEW: dict[str, Pattern] = {
    "local heads: a sliding window": Causal() & Window(6),
    "global heads: every n-th token": Causal() & Strided(5),
    "streaming: window and sinks": presets.streaming(window=5, sinks=2),
    "dilated window": Causal() & Dilated(4, step=3),
    "Longformer": presets.longformer(window=6, global_tokens=(0, 12)),
    "BigBird": presets.bigbird(block=2, random=1),
    "block-sparse": Blocks(6, ["1000", "1100", "0110", "1011"]),
    "packed documents": Causal() & Documents([9, 4, 11]),
}


def panel(layers: Layers, x: int, y: int) -> str:
    """One grid with its top left corner at (x, y): queries downwards, keys to the right."""
    side, square = LENGTH * CELL, f"h{CELL - 1}v{CELL - 1}h-{CELL - 1}z"
    lines = [f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="url(#hidden)"/>']
    for colour, seen in layers:
        pairs = np.argwhere(seen).tolist()
        path = "".join(f"M{x + key * CELL} {y + query * CELL}{square}" for query, key in pairs)
        lines.append(f'<path fill="{colour}" d="{path}"/>')
    return "\n".join(lines)


def drawing(panels: dict[str, Layers], columns: int = 4) -> str:
    """An SVG picture of the panels with their captions below."""
    step, line = LENGTH * CELL + MARGIN, LINE if any(panels) else 0  # an empty caption needs no line
    width = min(columns, len(panels)) * step + MARGIN
    height = -(-len(panels) // columns) * (step + line) + MARGIN
    body = []
    for index, (caption, layers) in enumerate(panels.items()):
        x, y = MARGIN + index % columns * step, MARGIN + index // columns * (step + line)
        body.append(panel(layers, x, y))
        body.append(f'<text x="{x}" y="{y + LENGTH * CELL + LINE - 2}">{escape(caption)}</text>')
    return FRAME.format(width=width, height=height, body="\n".join(body))


def plain(pattern: Pattern) -> Layers:
    """Every visible pair in one colour."""
    return [(SEEN, pattern.dense_mask(LENGTH))]


def by_term(pattern: Pattern) -> Layers:
    """Every visible pair in the colour of the term that computes it."""
    (group,) = plan(pattern, LENGTH, LENGTH, heads=1).groups
    return [(TERMS[type(term)], covered(term)) for term in group.terms]


def covered(term: Term) -> np.ndarray:
    """[Q, K], the pairs of one term of a plan without documents."""
    q, k = np.ogrid[:LENGTH, :LENGTH]
    if isinstance(term, terms.Blocks):
        return block_pairs(term)[:LENGTH, :LENGTH]
    seen = term.offsets.holds(q - k)
    if isinstance(term, terms.Rows):
        seen = seen & np.isin(q, term.queries)
    keys = None if isinstance(term, terms.Band) else term.keys
    return seen if keys is None else seen & np.isin(k, keys)


def block_pairs(term: terms.Blocks) -> np.ndarray:
    """[Q, K], rounded up to whole blocks."""
    (starts,), size = term.starts, term.size
    rows = len(starts) - 1
    seen = np.zeros((rows, rows, size, size), bool)
    for row in range(rows):
        for block in range(starts[row], starts[row + 1]):
            tile = term.tile[block]
            seen[row, term.columns[block]] = True if tile < 0 else term.tiles[tile]
    return seen.swapaxes(1, 2).reshape(rows * size, rows * size)


def groups(pattern: Pattern) -> dict[str, Layers]:
    """Each group of heads of a pattern, by its caption."""
    parts = pattern.groups(pattern.head_cuts[-1])
    return {f"heads {first} to {last - 1}": plain(group) for first, last, group in parts}


def pictures() -> dict[str, str]:
    """Every picture by its file name."""
    single = {name: drawing({"": plain(pattern)}) for name, pattern in DRAWINGS.items()}
    together = {
        "per-head": groups(PER_HEAD),
        "overview": {caption: plain(pattern) for caption, pattern in OVERVIEW.items()},
        "terms": {caption: by_term(pattern) for caption, pattern in PLANNED.items()},
    }
    everything = single | {name: drawing(panels) for name, panels in together.items()}
    return {f"{name}.svg": svg for name, svg in everything.items()}


if __name__ == "__main__":
    for name, svg in pictures().items():
        (Path(__file__).parent / name).write_text(svg)
