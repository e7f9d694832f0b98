"""The measurement of packing, rehearsed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "packing_cost.py"


def test_the_rehearsal_writes_a_table_of_all_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("packing_cost", SCRIPT)
    assert spec is not None and spec.loader is not None
    measurement = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measurement)
    monkeypatch.setattr(measurement, "REPEATS", 1)
    monkeypatch.setattr(measurement, "WARM_UP", 0)
    assert measurement.main(["--small", "--folder", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "packing_cost.json").read_text())["seconds"]
    assert len(found) == 5
    assert all(seconds > 0 for seconds in found.values())
    page = (tmp_path / "packing_cost.md").read_text()
    assert all(f"| {way} |" in page for way in found)
