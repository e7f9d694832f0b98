"""What a step did of what the devices could have done in its time."""

from __future__ import annotations

from dataclasses import replace

import torch

from .config import TrainConfig
from .metrics import Row
from .operations import operations
from .peaks import peak_of


class Efficiency:
    """Sets the operations that a step needs beside its seconds.

    Args:
        device: Of one process, all of which have such a one.
        processes: How many share the work.
    """

    def __init__(self, config: TrainConfig, device: torch.device, *, processes: int = 1):
        self._config = config
        peak = config.run.peak_flops or peak_of(device, config.run.precision)
        self._peak = None if peak is None else peak * processes

    def of(self, row: Row, packed_attention: int = 0) -> Row:
        """`mfu`, a share of the peak or None where that is not known, and `attention_share`, of the step's operations.

        Args:
            packed_attention: Operations of attention, where documents are packed and each step has others.
        """
        phase = self._config.phases[row["phase"] - 1]
        model = replace(self._config.model, windows=phase.windows)
        one = operations(model, length=phase.context_size, stage=phase.stage)
        total, attention = (phase.batch_size * number for number in one)
        if self._config.data.packing != "none":
            total, attention = total - attention + packed_attention, packed_attention
        mfu = self._peak and total / row["seconds"] / self._peak
        return {"mfu": mfu, "attention_share": attention / total}
