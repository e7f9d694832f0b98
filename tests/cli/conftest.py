"""The command line as a shell sees it, and a run that a few seconds can train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gossamer
from gossamer.cli import main

SOURCES = str(Path(gossamer.__file__).parent.parent)
TINY = (
    *("--data.tokenizer", "bytes", "--model.vocab-size", "257", "--model.context-size", "32"),
    *("--model.n-layer", "1", "--model.n-head", "3", "--model.n-embed", "12", "--schedule.warmup-steps", "1"),
    *("--run.batch-size", "2", "--run.evaluate-sequences", "2", "--run.device", "cpu"),
)

Shell = Here = Callable[..., subprocess.CompletedProcess]


def environment() -> dict[str, str]:
    """This environment, in which `python -m gossamer` is the package under test and draws no colours."""
    return {**os.environ, "PYTHONPATH": SOURCES, "NO_COLOR": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gossamer", *arguments]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Runs `gossamer ...` in an empty folder and returns its exit code and output, as text."""

    def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess:
        return subprocess.run(
            command(*arguments), cwd=tmp_path, env=environment(), input=given, capture_output=True, text=True
        )

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """The same within this process, which has imported torch already."""
    terminate = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        try:
            code = main(arguments)
        except SystemExit as stopped:  # how the parser ends after help or a wrong flag
            code = stopped.code
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, terminate)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("def f(x):\n    return x + 1\n" * 200)
    return path


@pytest.fixture(scope="session")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of four steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = ("--run.folder", str(folder), "--run.steps", "4", "--data.sources", str(text))
    subprocess.run(command("train", *TINY, *settings), env=environment(), capture_output=True, check=True)
    return folder
