"""Longformer's autoregressive language models (arXiv 2004.05150, table 12), as values that import no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..patterns.base import require_integer
from .gpt2 import GPT2Config

PHASES = 5
BYTES = 257  # and the end of a text
EVALUATED = 32_256  # longer than any phase trains: a model is evaluated on more context than it was trained with


@dataclass(frozen=True)
class _Size:
    n_layer: int
    dropout: float
    dilations: Sequence[int]


_SIZES = {
    "small": _Size(12, 0.2, (1,) * 6 + (1,) * 2 + (2,) * 2 + (3,) * 2),
    "large": _Size(30, 0.4, (1,) * 15 + (1,) * 5 + (2,) * 5 + (3,) * 5),
}


def longformer_lm(size: Literal["small", "large"], *, phase: int = PHASES) -> GPT2Config:
    """The paper's language model of bytes as it stands in one of its five phases of training.

    The windows double in five steps from the bottom to the top and again from phase to phase: 32 to 512 in the
    first, 512 to 8,192 in the last. Two heads of each layer are dilated. The paper's model has relative
    sinusoidal positions (Transformer-XL), with a projection and two biases in each layer; here queries and keys
    are turned instead, which is relative too and takes no parameters: 38 and 95 million in place of 41 and 102.

    >>> first, last = longformer_lm("small", phase=1), longformer_lm("small")
    >>> first.windows
    (32, 32, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512)
    >>> last.windows[0], last.windows[-1], last.layer_pattern(8)
    (512, 8192, PerHead([(Causal() & Window(size=4096), 6), (Causal() & Dilated(size=4096, step=2), 2)]))

    Raises:
        ValueError: `size` is neither small nor large, or `phase` is not in 1 ... 5.
    """
    if size not in _SIZES:
        raise ValueError(f"longformer_lm: size is {size!r}; give one of {', '.join(_SIZES)}")
    if require_integer("longformer_lm", "phase", phase, least=1) > PHASES:
        raise ValueError(f"longformer_lm: phase is {phase}; give at most {PHASES}")
    shape = _SIZES[size]
    return GPT2Config(
        vocab_size=BYTES,
        context_size=EVALUATED,
        n_layer=shape.n_layer,
        n_head=8,
        n_embed=512,
        dropout=shape.dropout,
        positions="rotary",
        windows=doubling_windows(shape.n_layer, least=32 * 2 ** (phase - 1), most=512 * 2 ** (phase - 1)),
        dilations=tuple(shape.dilations),
        dilated_heads=2,
    )


def doubling_windows(n_layer: int, *, least: int, most: int) -> tuple[int, ...]:
    """Windows that double from `least` at the bottom to `most` at the top, each for the same number of layers.

    Where the layers do not divide evenly, the largest windows get one layer more. For 12 layers and 32 to 512
    that gives a mean of 229, where the paper's ablation calls 230 the average of its increasing windows.

    >>> doubling_windows(7, least=8, most=32)
    (8, 8, 16, 16, 32, 32, 32)

    Raises:
        ValueError: `most` is no power of two times `least`, or there are more sizes than layers.
    """
    require_integer("doubling_windows", "least", least, least=1)
    require_integer("doubling_windows", "most", most, least=least)
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    if sizes[-1] != most:
        raise ValueError(f"doubling_windows: most is {most}; give {least} times a power of two, as {sizes[-1]}")
    if require_integer("doubling_windows", "n_layer", n_layer, least=1) < len(sizes):
        raise ValueError(f"doubling_windows: n_layer is {n_layer}; the sizes {sizes} need at least {len(sizes)} layers")
    each, rest = divmod(n_layer, len(sizes))
    counts = [each + (place >= len(sizes) - rest) for place in range(len(sizes))]
    return tuple(size for size, count in zip(sizes, counts, strict=True) for _ in range(count))
