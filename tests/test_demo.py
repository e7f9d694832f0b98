"""`make demo`, in small: two runs, four files, and a second time over the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gossamer

from .report.browser import dom, needs_browser, text_of

DEMO = Path(__file__).parent.parent / "examples" / "demo.py"
SMALL = (
    *("--context", "64", "--steps", "6", "--layers", "2", "--heads", "3", "--width", "24", "--vocabulary", "300"),
    *("--lengths", "32", "64", "--new-tokens", "12"),
)
NUMBERS = {"tokens_per_second", "peak_memory_bytes", "validation_loss", "parameters"}
FILES = {"dense", "sparse", "tokens", "metrics.jsonl", "summary.json", "sample.txt", "report.html"}


def run_demo(folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(gossamer.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DEMO), *SMALL, "--folder", str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    done = run_demo(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_folder_holds_the_four_files(demo: tuple[Path, str]) -> None:
    assert {path.name for path in demo[0].iterdir()} == FILES


def test_the_summary_holds_the_numbers_of_both_runs(demo: tuple[Path, str]) -> None:
    summary = json.loads((demo[0] / "summary.json").read_text())
    assert set(summary) == {"dense", "sparse", "context", "steps"}
    assert set(summary["dense"]) == set(summary["sparse"]) == NUMBERS
    assert (summary["context"], summary["steps"]) == (64, 6)
    assert summary["dense"]["parameters"] == summary["sparse"]["parameters"]
    assert all(value > 0 for run in ("dense", "sparse") for value in summary[run].values())


def test_the_runs_differ_in_their_attention_alone(demo: tuple[Path, str]) -> None:
    rows = [json.loads(line) for line in (demo[0] / "metrics.jsonl").read_text().splitlines()]
    losses = {name: [row["loss"] for row in rows if row["run"] == name] for name in ("dense", "sparse")}
    assert [row["step"] for row in rows] == 2 * [1, 2, 3, 4, 5, 6]
    assert losses["dense"][0] == pytest.approx(losses["sparse"][0], abs=0.02), "same seed, same first batch"
    assert losses["dense"] != losses["sparse"]


def test_both_are_printed_and_the_sample_is_written(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    for shown in ("dense", "sparse", "tokens/s", "peak memory", "validation loss"):
        assert shown in printed
    sample = (folder / "sample.txt").read_text()
    assert sample.startswith("def ") and sample in printed


@needs_browser
def test_the_report_shows_the_real_runs(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = demo
    shown = dom(folder / "report.html", tmp_path / "profile")
    assert 'data-state="drawn"' in shown
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['sparse']['validation_loss']:.3f} nats" in text_of(shown, "result")
    assert text_of(shown, "sample-text") == (folder / "sample.txt").read_text()
    assert "Layer 1" in text_of(shown, "layer-table")


def test_a_second_demo_replaces_the_first(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    (folder / "sample.txt").write_text("old")
    (folder / "report.html").unlink()
    (folder / "dense" / "metrics.jsonl").unlink()
    done = run_demo(folder)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "sample.txt").read_text() != "old"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert "holds more than a demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
