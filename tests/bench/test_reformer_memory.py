"""The script's figures and its page, on a tiny model."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reformer_memory.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reformer_memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rehearsal_measures_both_ways_and_finds_their_gradients_alike(script, tmp_path, capsys):
    assert script.main(["--small", "--folder", str(tmp_path), "--commit", "abc"]) == 0
    page = (tmp_path / "reformer_memory.md").read_text()
    assert page in capsys.readouterr().out and "commit abc" in page
    found = json.loads((tmp_path / "reformer_memory.json").read_text())["figures"]
    assert [(figure["layers"], figure["stored"]) for figure in found] == [(2, True), (2, False), (4, True), (4, False)]
    for figure in found:
        assert figure["gradient_difference"] < 0.1, "bf16 keeps three digits"
        assert figure["seconds"] > 0


def test_it_measures_the_depths_that_are_promised(script):
    assert script.DEPTHS == (2, 4, 8, 16, 24)
    assert script.CONFIG.longest == 65536 and script.CONFIG.padded(65536) == 65536
