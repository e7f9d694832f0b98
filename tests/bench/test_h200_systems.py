"""The script for whole systems: its gate finds a wrong module, its verdicts are right, and it can be rehearsed."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gossamer.bench import BenchConfig, Measurement, Results
from gossamer.bench.setting import Setting
from gossamer.machine import this_machine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "h200_systems.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as it is where the script runs
    spec = importlib.util.spec_from_file_location("h200_systems", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def part(name: str) -> ModuleType:
    return importlib.import_module(f"systems.{name}")


@pytest.fixture
def setting(script: ModuleType) -> Setting:
    return Setting(script.small(script.MODULES))


@pytest.mark.parametrize("name", ["longformer", "bigbird", "reformer"])
def test_the_gate_lets_our_module_pass_and_no_other(setting: Setting, name: str) -> None:
    system = getattr(part(name), name.upper())
    fault = part("modules").fault
    assert fault(system, setting) is None

    def spoilt(setting: Setting, length: int, dtype: torch.dtype) -> tuple:
        theirs, ours = system.alike(setting, length, dtype)
        with torch.no_grad():
            ours.module.value.weight *= 1.5
        return theirs, ours

    assert "output is" in fault(replace(system, alike=spoilt), setting)


def test_the_gate_of_blocks_finds_one_block_too_many(script: ModuleType) -> None:
    blocks, setting = part("blocks"), Setting(script.small(script.BLOCKS))
    (length,) = setting.config.lengths
    judge = blocks.Judge(setting, length)
    for gradients in (False, True):
        assert judge.fault(blocks.step_of(setting, blocks.ours, length, gradients)()) is None

        def wrong(layout: torch.Tensor):
            layout = layout.clone()
            layout[:, -1, 0] = True
            return blocks.ours(layout)

        assert judge.fault(blocks.step_of(setting, wrong, length, gradients)()) is not None


def measured(case: str, seconds: dict[tuple[str, int], float]) -> Results:
    found = tuple(Measurement(case, who, n, s, s, s, 1, 0) for (who, n), s in seconds.items())
    lengths = tuple(sorted({n for _, n in seconds}))
    return Results(BenchConfig(lengths=lengths), this_machine(), "2026-01-01", found)


def test_promises_are_judged_by_what_was_measured(script: ModuleType) -> None:
    kept = measured(
        "bigbird", {("transformers", 10): 8, ("gossamer", 10): 2, ("transformers", 90): 9, ("gossamer", 90): 2}
    )
    assert [p.kept for p in part("promises").promises({"bigbird": kept})] == [True, True, True]
    slow = measured(
        "bigbird", {("transformers", 10): 7, ("gossamer", 10): 2, ("transformers", 90): 9, ("gossamer", 90): 3}
    )
    assert [p.kept for p in part("promises").promises({"bigbird": slow})] == [False, False, False]
    half = measured("window", {("gossamer", 10): 2, ("gossamer, half the window", 10): 1})
    assert [round(p.measured, 2) for p in part("promises").promises({"longformer": half})] == [1.0, 0.5]
    beside = measured("blocks", {("cudnn", 10): 12, ("flex", 10): 1, ("gossamer", 10): 2})
    assert [p.kept for p in part("promises").promises({"blocks": beside})] == [True, False, False]


def test_it_can_be_rehearsed(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--small", "--only", "longformer", "blocks", "--folder", str(tmp_path), "--commit", "abc"]) == 1
    record = json.loads((tmp_path / "h200_systems.json").read_text())
    assert list(record["sections"]) == ["blocks", "longformer"]
    page = (tmp_path / "h200_systems.md").read_text()
    assert "| longformer | 1,280 | gossamer |" in page and "cudnn skipped: runs on CUDA only" in page
    assert (tmp_path / "h200_systems.png").stat().st_size > 1000
