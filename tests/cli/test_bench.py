"""`gossamer bench` leaves its tables on the screen, and its record and picture in the folder."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Here


def test_a_small_benchmark(here: Here, tmp_path: Path) -> None:
    small = ("--lengths", "64", "--heads", "3", "--head-width", "8", "--window", "16", "--repeats", "1")
    done = here("bench", "--cases", "forward", "--contenders", "sdpa", "document", *small, "--folder", "out")
    assert done.returncode == 0, done.stderr
    assert "sdpa" in done.stdout and "document" in done.stdout
    assert "64 tokens, sdpa" in done.stderr
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert record["config"]["lengths"] == [64]
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_peers_that_need_a_gpu_say_so(here: Here, tmp_path: Path) -> None:
    small = ("--lengths", "64", "--heads", "4", "--key-heads", "2", "--head-width", "8", "--repeats", "1")
    cpu = ("--device", "cpu", "--contenders", "window", "--cases", "forward", "--window", "16")
    done = here("bench", "--peers", *cpu, *small, "--folder", "out")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "bench.md").read_text()
    for name in ("flex", "flex-document", "flex-window+tokens", "fa4"):
        assert f"- {name} skipped: runs on CUDA only" in page
    assert "- local-attention skipped: needs as many key heads as query heads" in page
    assert "| 64 | window | " in page and "of the floor" in page
