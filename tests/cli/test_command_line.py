"""What a shell gets back: output, exit codes, and one clear message where something is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gossamer.cli.command_line import COMMANDS, described

from .conftest import TINY, Here, Shell, command, environment

HELP = 0.5
"""Of the processor time of `import torch`, which says how fast the machine is: where it is slow, both take longer."""


def seconds(command: list[str]) -> float:
    """Processor time of the fastest of three runs: what the command costs, whatever else the machine does."""
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(times)


@pytest.fixture(scope="module")
def importing_torch() -> float:
    return seconds([sys.executable, "-c", "import torch"])


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_answers_at_once(name: str, importing_torch: float) -> None:
    assert seconds(command(*filter(None, [name]), "--help")) < HELP * importing_torch


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_no_torch(name: str) -> None:
    code = "import sys; from gossamer.cli import main\n"
    code += "try: main(sys.argv[1:])\nfinally: sys.exit('torch' in sys.modules)"
    arguments = [*filter(None, [name]), "--help"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment(), stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_help_names_every_command(shell: Shell) -> None:
    done = shell("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert shell().stdout == done.stdout


def test_version(shell: Shell) -> None:
    assert re.fullmatch(r"gossamer (\d+\.\d+.*|from a source tree)\n", shell("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shwo"], "did you mean show?"),
        (["--frobnicate"], "commands are train, prepare"),
        (["train", "--run.stps", "3"], "--run.steps"),
        (["train", "--run.steps", "many"], "many"),
        (["train", "--run.steps", "0"], "steps is 0"),
        (["train", "--model.n-head", "5"], "n_head=5"),
        (["train", "--config", "a.toml", "--resume", "b"], "leave --config out"),
        (["generate"], "--model"),
        (["generate", "--model", "x", "--temperature", "-1"], "temperature is -1"),
        (["bench", "--lengths", "0"], "lengths"),
        (["show"], "PATTERN"),
        (["show", "Causal() &"], "Causal() &"),
        (["show", "Foo()"], "no pattern 'Foo'"),
        (["show", "Causal()", "--length", "0"], "length is 0"),
        (["show", "PerHead([(Causal(), 2)])", "--heads", "3"], "written for 2 heads"),
        (["doctor", "now"], "now"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_wrong(arguments: list[str], said: str, here: Here) -> None:
    done = here(*arguments)
    assert done.returncode == 2
    assert said in re.sub(r"\s*│\n│\s*", " ", done.stderr)
    assert not done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--config", "absent.toml"], "absent.toml: No such file or directory"),
        (["train", "--config", "bad.toml"], "unknown key run.step; did you mean run.steps?"),
        (["train", "--resume", "absent"], "--resume absent holds no run"),
        (["train", "--data.sources", "absent.txt"], "absent.txt does not exist"),
        (["train", "--data.sources", "empty.txt"], "empty.txt is empty"),
        (["train", "--run.device", "cuda:99"], "run.device is 'cuda:99'"),
        (["generate", "--model", "absent"], "--model absent does not exist"),
        (["generate", "--model", "."], "has no tokenizer"),
        (["bench", "--device", "nowhere"], "nowhere"),
    ],
)
def test_a_failure_is_1_and_one_message(arguments: list[str], said: str, here: Here, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[run]\nstep = 3\n")
    (tmp_path / "empty.txt").write_text("")
    done = here(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs" / "gpt2").exists()


def test_debug_shows_where(shell: Shell) -> None:
    done = shell("train", "--debug", "--resume", "absent")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_debug_logs_the_plan(shell: Shell) -> None:
    assert "planned" in shell("show", "Causal() & Window(3)", "--debug").stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("x is 3; give 4"), "x is 3; give 4"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), "a/b: No such file or directory"),
        (ModuleNotFoundError("No module named 'flax.x'", name="flax.x"), "install it with: pip install flax"),
        (KeyError("x"), "KeyError: 'x' (--debug shows where)"),
        (ValueError(), "ValueError:  (--debug shows where)"),
    ],
)
def test_errors_are_described_for_a_person(error: Exception, message: str) -> None:
    assert message in described(error)


def test_a_closed_pipe_is_quiet() -> None:
    shown = subprocess.Popen(
        command("show", "Causal()", "--cells", "200", "--length", "200"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    shown.stdout.readline()
    shown.stdout.close()
    assert shown.wait(60) == 128 + signal.SIGPIPE
    assert shown.stderr.read() == b""
    shown.stderr.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_training_which_then_resumes(number: int, code: int, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ("--run.folder", str(folder), "--run.steps", "100000", "--data.sources", str(text))
    training = subprocess.Popen(
        command("train", *TINY, *settings),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert training.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    training.send_signal(number)
    _, err = training.communicate(timeout=120)
    assert training.returncode == code
    assert "resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert list((folder / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_the_prompt_is_quiet(number: int, code: int, trained: Path) -> None:
    keyboard, terminal = os.openpty()
    waiting = subprocess.Popen(
        command("generate", "--model", str(trained)),
        env=environment(),
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with os.fdopen(keyboard), os.fdopen(terminal), waiting.stderr as errors:
        assert "type the prompt" in errors.readline()
        waiting.send_signal(number)
        assert waiting.wait(60) == code
        assert errors.read() == ""
