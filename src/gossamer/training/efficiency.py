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

    def of(self, row: Row) -> Row:
        """`mfu`, a share of the peak or None where that is not known, and `attention_share`, of the step's operations.

        Both are None where documents are packed: how much attention a step needs is then another in each.
        """
        if self._config.data.packing != "none":
            return {"mfu": None, "attention_share": None}
        phase = self._config.phases[row["phase"] - 1]
        model = replace(self._config.model, windows=phase.windows)
        needed = operations(model, length=phase.context_size, stage=phase.stage)
        done = needed.total * phase.batch_size / row["seconds"]
        return {"mfu": self._peak and done / self._peak, "attention_share": needed.attention_share}
