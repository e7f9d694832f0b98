"""The share of the peak is that of the phase's own operations, over all processes, and null where nothing is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gossamer.training.config import PhaseConfig, TrainConfig
from gossamer.training.efficiency import Efficiency
from gossamer.training.operations import operations

CPU = torch.device("cpu")


def test_it_is_the_operations_of_the_batch_over_the_peak_of_all_processes(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(batch_size=6, peak_flops=1e9)
    needed = operations(config.model, length=16)
    for processes in (1, 4):
        found = Efficiency(config, CPU, processes=processes).of({"phase": 1, "seconds": 0.25})
        assert found["mfu"] == pytest.approx(6 * needed.total / 0.25 / (1e9 * processes))
        assert found["attention_share"] == needed.attention_share


def test_each_phase_counts_its_own_windows_length_and_batch(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(sparse=False, model={"windows": (3,)}, batch_size=2, peak_flops=1e9)
    phases = (PhaseConfig(steps=3, context_size=8), PhaseConfig(steps=3, windows=(9,), batch_size=5))
    config = replace(config, phase=phases)
    first, second = (Efficiency(config, CPU).of({"phase": phase, "seconds": 1.0})["mfu"] for phase in (1, 2))
    assert first == pytest.approx(2 * operations(config.model, length=8).total / 1e9)
    wide = replace(config.model, windows=(9,))
    assert second == pytest.approx(5 * operations(wide, length=16).total / 1e9)


def test_an_unknown_device_has_no_peak_and_packed_documents_no_count(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny()
    assert Efficiency(config, CPU).of({"phase": 1, "seconds": 1.0})["mfu"] is None
    packed = replace(tiny(peak_flops=1e9), data=replace(config.data, packing="documents"))
    assert Efficiency(packed, CPU).of({"phase": 1, "seconds": 1.0}) == {"mfu": None, "attention_share": None}
