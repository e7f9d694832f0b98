"""The share of the peak is that of the phase's own operations, over all processes, and null where nothing is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gossamer.config import GPT2Config
from gossamer.models.gpt2 import GPT2
from gossamer.training.config import PhaseConfig, TrainConfig
from gossamer.training.efficiency import Efficiency
from gossamer.training.operations import operations, packed_attention

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


def test_an_unknown_device_has_no_peak(tiny: Callable[..., TrainConfig]) -> None:
    found = Efficiency(tiny(), CPU).of({"phase": 1, "seconds": 1.0})
    assert found["mfu"] is None and found["attention_share"] > 0


def test_packed_documents_have_the_attention_of_each_alone(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(peak_flops=1e9, batch_size=2)
    config = replace(config, data=replace(config.data, packing="documents"))
    alone = [operations(config.model, length=16), operations(config.model, length=16)]
    attention = packed_attention(GPT2(config.model), (16, 16), 16)
    assert attention == sum(each.attention for each in alone)
    found = Efficiency(config, CPU).of({"phase": 1, "seconds": 1.0}, attention)
    assert found["mfu"] == pytest.approx(sum(each.total for each in alone) / 1e9)
    fewer = packed_attention(GPT2(config.model), (16, 9, 7), 16)
    part = Efficiency(config, CPU).of({"phase": 1, "seconds": 1.0}, fewer)
    assert part["mfu"] * 1e9 == pytest.approx(found["mfu"] * 1e9 - attention + fewer)
    assert part["attention_share"] == pytest.approx(fewer / (part["mfu"] * 1e9))


@pytest.mark.parametrize("windows", [(), (5, 16)])
def test_pairs_within_documents_are_those_that_masks_show(windows: tuple[int, ...]) -> None:
    shape = GPT2Config(vocab_size=50, context_size=64, n_layer=2, n_head=2, n_embed=8, windows=windows)
    documents, pairs = (30, 1, 17), 0
    for window in windows or (64, 64):
        pairs += 2 * sum(min(query + 1, window) for length in documents for query in range(length))
    assert packed_attention(GPT2(shape), documents, 64) == pairs * 14 * 4  # seven products of width four
