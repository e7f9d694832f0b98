"""The benchmark script's judgement and its page, on figures made by hand and on a tiny run."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from gossamer.bench import run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cpu_window.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cpu_window", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(script, monkeypatch, tmp_path) -> ModuleType:
    small = {"heads": 2, "head_width": 8, "window": 16, "repeats": 1, "threads": 1}
    monkeypatch.setattr(script, "CONFIG", replace(script.CONFIG, lengths=(64, 128), **small))
    monkeypatch.setattr(script, "LONG_CONFIG", replace(script.LONG_CONFIG, lengths=(256,), **small))
    monkeypatch.setattr(script, "SPEEDUPS", {128: 1e6})
    monkeypatch.setattr(script, "LONG", 256)
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    return script


def test_it_measures_exactly_what_is_promised(script):
    config = script.CONFIG
    assert (config.threads, config.precision, config.heads, config.head_width) == (2, "fp32", 12, 64)
    assert (config.window, config.lengths[0], config.lengths[-1]) == (256, 1024, 16384)
    assert script.LONG_CONFIG.lengths == (131072,) and script.LONG_GIB == 6
    assert script.SPEEDUPS == {4096: 4.0, 16384: 12.0}


def test_a_broken_promise_is_said_and_fails_the_run(tiny, capsys):
    assert tiny.main() == 1
    page = (tiny.RESULTS / "cpu_window.md").read_text()
    assert "at least 1e+06x SDPA" in page and "| NO |" in page and "| yes |" in page
    assert page in capsys.readouterr().out
    record = json.loads((tiny.RESULTS / "cpu_window.json").read_text())
    assert {p["kept"] for p in record["promises"]} == {True, False}
    assert record["long"]["measurements"][0]["length"] == 256


def test_the_memory_promised_counts_the_inputs(tiny):
    (m,) = run(tiny.LONG_CONFIG).outcomes
    inputs = 4 * 256 * 2 * 8 * 4
    assert tiny.total_gib(m) == pytest.approx((m.peak_bytes + inputs) / 2**30)
