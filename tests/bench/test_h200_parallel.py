"""The benchmark of several GPUs: its page, its promises and its arithmetic; and a rehearsal by two processes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPT = FOLDER / "h200_parallel.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("h200_parallel", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "scale"]:
        del sys.modules[name]


@pytest.fixture
def links(script):
    return [
        script.Figure("links", "to a neighbour", 2, 1024, seconds=2e-5),
        script.Figure("links", "to a neighbour", 2, 2**28, seconds=2e-5 + 2**28 / 250e9),
    ]


@pytest.fixture
def window(script):
    return script.Figure(
        "context", "window 1,024, 12 x 64: forward and backward", 2, 524_288, seconds=0.0075, alone=0.0072,
        nbytes=3_000_000, exposed=0.0001, exchanging=0.0002, error=0.003,
    )  # fmt: skip


@pytest.fixture
def fsdp(script):
    return script.Figure("training", "FSDP2, 0.7 billion weights", 1, 32_768, seconds=0.4)


def test_promises_are_of_windows_and_of_training_at_more_tokens(script, window, fsdp):
    slower = replace(fsdp, processes=2, tokens=65_536, seconds=0.45)
    kept = {promise.text: promise.kept for promise in script.promises([window, fsdp, slower])}
    assert kept == {
        "window 1,024, 12 x 64: forward and backward, 2 processes: at least 90% of linear": True,
        "FSDP2, 0.7 billion weights, 2 processes: at least 90% of linear": False,
    }


def test_the_arithmetic_hides_what_computation_can_hide(script, links, window, fsdp):
    found = list(script.predictions([*links, window, fsdp]))
    assert [each.processes for each in found] == 2 * [4, 8, 64, 512]
    windows, gathers = found[:4], found[4:]
    assert {round(each.efficiency, 3) for each in windows} == {0.96}  # a neighbour's keys, however many there are
    assert windows[-1].tokens == 512 * 262_144
    assert all(a.efficiency > b.efficiency for a, b in pairwise(gathers))
    slow = [replace(each, seconds=1000 * each.seconds) for each in links]
    assert all(each.exposed > 0.0 for each in script.predictions([*slow, window]))


def test_without_a_measured_link_nothing_is_predicted(script, window, fsdp):
    assert list(script.predictions([window, fsdp])) == []


@pytest.mark.slow
def test_a_rehearsal_by_two_processes(script, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        str(SCRIPT), "--small", "--folder", str(tmp_path),
    ]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, timeout=600)
    record = json.loads((tmp_path / "h200_parallel.json").read_text())
    assert {each["section"] for each in record["figures"]} == set(script.SECTIONS), said.stderr[-2000:]
    assert "Simulation: not measured" in (tmp_path / "h200_parallel.md").read_text()
