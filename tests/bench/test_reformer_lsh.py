"""The benchmark of hashed attention: its judgement on figures made by hand, and a rehearsal on this machine."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("transformers")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reformer_lsh.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reformer_lsh", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reformer_lsh", module)
    spec.loader.exec_module(module)
    return module


def test_promises_are_judged(script: ModuleType) -> None:
    sound = script.Figure(4096, 2, "bfloat16", 9.0, 1.0, 20.0, 4.0, 3.0, 1.0, 0.0)
    long = replace(sound, length=65536, ours=4.9)
    assert list(script.broken([sound, long])) == []
    assert list(script.broken([sound, replace(long, ours=5.1)])) == [
        "bfloat16, 2 rounds, 65,536 tokens: 3.9 times",
        "65,536 tokens take 1.27 times as long as 4,096",
    ]
    assert list(script.broken([sound, replace(long, dtype="float32", ours=30.0)])) == []
    assert list(script.broken([sound, replace(long, rounds=4, ours=5.0)])) == []


def test_a_rehearsal_leaves_a_page(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script, "TASKS", script.TASKS[:1])
    assert script.main(["--small", "--folder", str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "reformer_lsh.json").read_text())["figures"]) == 1
    assert "| bfloat16 | 2 | 64 |" in (tmp_path / "reformer_lsh.md").read_text()


def test_layers_that_differ_are_not_timed(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made = script.layers

    def different(task: object) -> tuple[object, object]:
        theirs, ours = made(task)
        ours.value.weight.data.mul_(1.1)
        return theirs, ours

    monkeypatch.setattr(script, "layers", different)
    with pytest.raises(AssertionError, match="outputs differ by"):
        script.measured(script.small(script.TASKS[0]))
