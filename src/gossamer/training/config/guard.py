"""Which steps are too bad to be taken."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import require, require_whole


@dataclass(frozen=True)
class GuardConfig:
    """Which steps are not taken: those with a loss or a gradient that is no finite number, or with a gradient far
    longer than those before it. Such a step changes no weight, and the next one has other text.

    A run may be resumed with other settings of this branch.
    """

    spike_factor: float = 100.0
    """A gradient longer than this many times the median of the last `spike_window` ones is a spike. inf: none is."""
    spike_window: int = 128
    """Steps taken, of one phase, that a gradient is compared with; before there are as many, none is a spike."""
    most_skips: int = 20
    """Steps in a row that may be left out; one more ends the run. 0: the first one does."""

    def __post_init__(self) -> None:
        require(self, "spike_factor", lambda factor: factor > 1, "a number above 1, or inf for no spikes")
        for name, least in (("spike_window", 1), ("most_skips", 0)):
            require_whole(self, name, least=least)
