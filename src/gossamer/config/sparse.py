"""The design document's sparse attention, as a value that imports no torch.

The names in this file are the document's own.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..patterns import Causal, Pattern, PerHead, Strided, Tokens, Window
from ..patterns.base import require_integer


def compute_dynamic_window_size(
    seq_len: int, base_window: int, min_window_size: int = 32, max_window_size: int = 512
) -> int:
    """The window that grows with the square root of the length: `int(base · sqrt(n / base))`, then clamped.

    >>> [compute_dynamic_window_size(n, 128) for n in (1, 128, 1024, 65536)]
    [32, 128, 362, 512]

    Raises:
        ValueError: A size is no positive integer (`seq_len` may be 0), or the minimum exceeds the maximum.
    """
    require_integer("compute_dynamic_window_size", "seq_len", seq_len, least=0)
    require_integer("compute_dynamic_window_size", "base_window", base_window, least=1)
    require_integer("compute_dynamic_window_size", "min_window_size", min_window_size, least=1)
    require_integer("compute_dynamic_window_size", "max_window_size", max_window_size, least=min_window_size)
    grown = int(base_window * math.sqrt(seq_len / base_window))
    return max(min_window_size, min(grown, max_window_size))


@dataclass(frozen=True)
class SparseAttentionConfig:
    """Local heads see a sliding window, global heads every n-th token; both only the past.

    >>> config = SparseAttentionConfig()
    >>> config.window(1024), round(1 - config.pattern(1024).density(1024), 3)
    (362, 0.789)

    Raises:
        ValueError: A field is out of its range; the message names the field, the value and the fix.
    """

    local_heads: int = 8
    """Heads that see a sliding window."""
    global_heads: int = 4
    """Heads that see the global tokens."""
    window_size: int = 128
    """Keys a local head sees, the query itself included; the base of the adaptive window."""
    global_token_ratio: float = 0.1
    """Share of the tokens that are global: every `round(1 / ratio)`-th from position 0, the same at any length."""
    adaptive_window: bool = True
    """Whether the window grows with the square root of the sequence's length."""
    min_window_size: int = 32
    """The adaptive window's least size."""
    max_window_size: int = 512
    """The adaptive window's largest size."""
    mask_value: float = -1e9
    """What the dense teaching path puts in place of masked scores; the kernels mask exactly."""
    max_global_tokens: int | None = None
    """At most this many global tokens, the oldest ones: a cost that is strictly linear in the length."""
    global_rows: bool = False
    """Whether global tokens also see all of their past in the global heads."""

    def __post_init__(self) -> None:
        for name, least in (
            ("local_heads", 0),
            ("global_heads", 0),
            ("window_size", 1),
            ("min_window_size", 1),
        ):
            require_integer("SparseAttentionConfig", name, getattr(self, name), least)
        require_integer("SparseAttentionConfig", "max_window_size", self.max_window_size, self.min_window_size)
        if self.max_global_tokens is not None:
            require_integer("SparseAttentionConfig", "max_global_tokens", self.max_global_tokens, least=1)
        if self.n_head == 0:
            raise ValueError("SparseAttentionConfig: local_heads and global_heads are both 0; give at least one head")
        if not (isinstance(self.global_token_ratio, int | float) and 0 < self.global_token_ratio <= 1):
            raise ValueError(
                f"SparseAttentionConfig: global_token_ratio is {self.global_token_ratio!r}; give a share in (0, 1]"
            )
        if not (isinstance(self.mask_value, int | float) and self.mask_value < 0):
            raise ValueError(f"SparseAttentionConfig: mask_value is {self.mask_value!r}; give a large negative number")

    @property
    def n_head(self) -> int:
        """All heads of both groups."""
        return self.local_heads + self.global_heads

    @property
    def global_every(self) -> int:
        """Distance from one global token to the next."""
        return round(1 / self.global_token_ratio)

    def for_heads(self, n_head: int) -> SparseAttentionConfig:
        """The same configuration with `n_head` heads, split between the groups in the same proportion.

        >>> SparseAttentionConfig().for_heads(6).global_heads
        2
        """
        require_integer("SparseAttentionConfig.for_heads", "n_head", n_head, least=1)
        local = round(n_head * self.local_heads / self.n_head)
        if n_head > 1 and self.local_heads and self.global_heads:  # neither group vanishes
            local = min(max(local, 1), n_head - 1)
        return replace(self, local_heads=local, global_heads=n_head - local)

    def window(self, length: int) -> int:
        """The window of a sequence of `length` tokens: resolved once, for as long as the sequence may grow."""
        if not self.adaptive_window:
            return self.window_size
        return compute_dynamic_window_size(length, self.window_size, self.min_window_size, self.max_window_size)

    def local_pattern(self, length: int) -> Pattern:
        """What a local head sees in a sequence that is planned for `length` tokens."""
        return Causal() & Window(self.window(length))

    def global_pattern(self) -> Pattern:
        """What a global head sees: the global tokens at or before the query."""
        every, most = self.global_every, self.max_global_tokens
        tokens = Strided(every) if most is None else Tokens(tuple(range(0, most * every, every)))
        return Causal() & (tokens | tokens.T) if self.global_rows else Causal() & tokens

    def pattern(self, length: int) -> PerHead:
        """What every head sees in a sequence that is planned for `length` tokens."""
        groups = [(self.local_pattern(length), self.local_heads), (self.global_pattern(), self.global_heads)]
        return PerHead(tuple((pattern, heads) for pattern, heads in groups if heads))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON or TOML."""
        return asdict(self)


def get_recommended_config(
    seq_len: int, model_size: Literal["small", "medium", "large"] | None = None
) -> SparseAttentionConfig:
    """The document's recommendation for a model size, or, without one, for the length alone.

    >>> get_recommended_config(4096, "medium").window_size, get_recommended_config(4096).local_heads
    (256, 12)

    Raises:
        ValueError: `model_size` is not one of the three, or `seq_len` is no positive integer.
    """
    require_integer("get_recommended_config", "seq_len", seq_len, least=1)
    if model_size is None:
        local, spread, window = _by_length(seq_len)
    elif model_size in _BY_SIZE:
        local, spread, largest = _BY_SIZE[model_size]
        window = max(1, min(largest, seq_len // 4))
    else:
        raise ValueError(f"get_recommended_config: model_size is {model_size!r}; give one of {', '.join(_BY_SIZE)}")
    least = min(SparseAttentionConfig.min_window_size, window)
    return SparseAttentionConfig(local, spread, window, min_window_size=least)


_BY_SIZE = {"small": (4, 2, 128), "medium": (8, 4, 256), "large": (12, 4, 512)}
"""Local heads, global heads and the largest window of each model size."""


def _by_length(seq_len: int) -> tuple[int, int, int]:
    """Local heads, global heads and window of the document's table of scenarios."""
    if seq_len < 512:
        return 4, 2, 64
    return (8, 4, 128) if seq_len <= 2048 else (12, 4, 256)
