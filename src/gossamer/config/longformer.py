"""The shape of a Longformer, as a value that imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..patterns.base import require_integer
from .encoder import EncoderConfig


@dataclass(frozen=True)
class LongformerConfig(EncoderConfig):
    """The shape of a Longformer (arXiv 2004.05150): a window for each layer, and perhaps a dilation for each head.

    >>> LongformerConfig(num_hidden_layers=3, attention_window=64).attention_window
    (64, 64, 64)

    Raises:
        ValueError: A field is out of its range; the message names the field, the value and the fix.
    """

    hidden_act: str = "gelu"
    pad_token_id: int = 1
    attention_window: int | Sequence[int] = 512
    """Two-sided, even width for all layers or for each: a token sees itself and half of it on either side."""
    attention_dilation: int | Sequence[int | Sequence[int]] = 1
    """Steps between the keys of a window: for all layers, for each, or for each head of each. 1 leaves none out."""
    causal: bool = False
    """Whether tokens see only what stands before them, as in the paper's language models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("causal", isinstance(self.causal, bool), "give True or False")
        windows = self._for_each_layer("attention_window")
        self._require("attention_window", all(isinstance(w, int) and w > 0 and w % 2 == 0 for w in windows), _EVEN)
        object.__setattr__(self, "attention_window", windows)
        dilations = tuple(map(self._dilation, self._for_each_layer("attention_dilation")))
        object.__setattr__(self, "attention_dilation", dilations)
        last = self.max_position_embeddings - self.pad_token_id - 1
        self._require("max_position_embeddings", last > 0, f"give more than pad_token_id + 1 = {self.pad_token_id + 1}")

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: RoBERTa's positions begin after the padding's own."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def window(self, layer: int) -> int:
        """The two-sided width of a layer's window."""
        return tuple(self.attention_window)[layer]  # type: ignore[arg-type]

    def dilation(self, layer: int) -> int | tuple[int, ...]:
        """A layer's dilation, or that of each of its heads."""
        return tuple(self.attention_dilation)[layer]  # type: ignore[arg-type]

    @property
    def dilated(self) -> bool:
        """Whether any window leaves keys out."""
        return set(self.attention_dilation) != {1}  # type: ignore[arg-type]

    def _for_each_layer(self, name: str) -> tuple:
        given, layers = getattr(self, name), self.num_hidden_layers
        each = tuple(given) if isinstance(given, list | tuple) else (given,) * layers
        self._require(name, len(each) == layers, f"give one for each of num_hidden_layers={layers}")
        return each

    def _dilation(self, given: int | Sequence[int]) -> int | tuple[int, ...]:
        heads = tuple(given) if isinstance(given, list | tuple) else (given,)
        steps = tuple(require_integer("LongformerConfig", "attention_dilation", step, least=1) for step in heads)
        fits = len(steps) in (1, self.num_attention_heads)
        self._require("attention_dilation", fits, f"give a layer one, or {self.num_attention_heads}: one a head")
        return steps[0] if len(set(steps)) == 1 else steps


_EVEN = "give positive even numbers: half the window lies on either side"
