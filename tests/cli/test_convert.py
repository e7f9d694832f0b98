"""`gossamer convert`: tables, a picture, a sparse folder, and a clear message for what a user can get wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from gossamer import GPT2, parse
from tests.convert.tiny import TEXT, near_and_first, save

from .conftest import TINY, Here, command, environment

LOCAL, FIRST = "Causal() & Window(8)", "Causal() & Sinks(4)"
CANDIDATES = ("--candidates", LOCAL, "--candidates", FIRST, "--candidates", "Causal()")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder beside a text, in the current folder: heads that look near, and at the first token."""
    (tmp_path / "text.txt").write_text(TEXT)
    return save(near_and_first(), tmp_path / "dense")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The finished run of a dense GPT2 of Gossamer beside a text, in the current folder."""
    import subprocess

    (tmp_path / "text.txt").write_text(TEXT)
    flags = ("--run.folder", "run", "--run.steps", "2", "--data.sources", "text.txt", "--model.no-use-sparse-attention")
    run = command("train", *TINY, *flags)
    subprocess.run(run, env=environment(), cwd=tmp_path, capture_output=True, check=True)
    return tmp_path / "run"


def converted(here: Here, *flags: str, model: str = "dense") -> object:
    return here("convert", "--model", model, "--text", "text.txt", "--device", "cpu", "--samples", "2", *flags)


@pytest.mark.usefixtures("model")
def test_each_head_gets_its_pattern_and_the_folder_says_so(here: Here, tmp_path: Path) -> None:
    done = converted(here, "--budget", "0.3", *CANDIDATES, "--out", "sparse", "--plot", "trade-off.png")
    assert done.returncode == 0, done.stderr
    for said in ("Candidates, at 64 tokens", "at a budget of 30.00 %", "What a budget keeps", "30.00 % ←"):
        assert said in done.stdout
    assert "measured 2 of 2 sequences" in done.stderr
    assert (tmp_path / "trade-off.png").stat().st_size > 0
    config = json.loads((tmp_path / "sparse" / "config.json").read_text())
    near, first = parse(LOCAL), parse(FIRST)
    patterns = [parse(text) for text in config["sparse_attention"]["patterns"]]
    assert [[pattern.for_head(head) for head in (0, 1)] for pattern in patterns] == [[near, first], [first, near]]


@pytest.mark.usefixtures("model")
def test_without_out_nothing_is_written(here: Here, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = converted(here, "--budget", "0.9", "--context", "48")
    assert done.returncode == 0, done.stderr
    assert "Candidates, at 48 tokens" in done.stdout
    assert "Strided(every=10" in done.stdout and "written" not in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("own")
def test_a_run_of_our_own_is_converted_too(here: Here, tmp_path: Path) -> None:
    done = converted(here, "--budget", "0.6", *CANDIDATES[:2], "--out", "sparse", model="run")
    assert done.returncode == 0, done.stderr
    assert "GPT2.load reads the same choice: SparseAttentionConfig(local_heads=3, global_heads=0" in done.stdout
    loaded = GPT2.load(tmp_path / "sparse")
    assert loaded.config.sparse_config.window_size == 8
    assert {path.name for path in (tmp_path / "sparse").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert loaded(torch.zeros(1, 4, dtype=torch.int64)).logits.shape == (1, 4, 257)


@pytest.mark.usefixtures("own")
def test_what_our_own_configuration_cannot_say_is_said(here: Here) -> None:
    done = converted(here, "--budget", "0.9", "--candidates", FIRST, "--out", "sparse", model="run")
    assert done.returncode == 0, done.stderr
    assert "no SparseAttentionConfig says this choice" in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget", "0"], "--budget is 0.0; give a share"),
        (["--budget", "1.5"], "--budget is 1.5"),
        (["--budget", "nan"], "--budget is nan"),
        (["--context", "0"], "context is 0"),
        (["--samples", "0"], "samples is 0"),
        (["--candidates", "Windw(8)"], "no pattern 'Windw'"),
        (["--candidates", "PerHead([(Causal(), 2)])"], "differs between heads"),
        (["--plot", "trade-off.txt"], "ends in .png, .svg or .pdf"),
    ],
)
def test_wrong_flags_are_wrong_usage(flags: list[str], said: str, here: Here) -> None:
    done = here("convert", "--model", "dense", "--text", "text.txt", *flags)
    assert done.returncode == 2
    assert said in re.sub(r"\s*│\n│\s*", " ", done.stderr)
    assert not done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "absent"], "--model absent is no folder"),
        (["--model", "empty"], "empty holds no config.json"),
        (["--model", "unknown"], "unknown holds no"),
        (["--text", "absent.txt"], "absent.txt: No such file"),
        (["--text", "binary"], "binary is not UTF-8 text (byte 1)"),
        (["--text", "short.txt"], "text has 1 tokens, and a context of 64 needs 64"),
        (["--context", "65"], "context is 65, but the model has 64 positions"),
        (["--budget", "0.01"], "the cheapest candidate of every head takes"),
        (["--out", "taken"], "not an empty folder"),
        (["--out", "dense/sparse"], "lies in the dense model's folder"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_a_failure_is_one_message_and_nothing_is_written(
    flags: list[str], said: str, model: Path, here: Here, tmp_path: Path
) -> None:
    (tmp_path / "binary").write_bytes(b"a\xff")
    (tmp_path / "short.txt").write_text("low")
    for folder in ("empty", "taken", "unknown"):
        (tmp_path / folder).mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "perceptron"}')
    before = sorted(tmp_path.rglob("*"))
    given = {"--model": "dense", "--text": "text.txt", "--out": "sparse", "--device": "cpu"}
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    done = here("convert", *(word for pair in given.items() for word in pair))
    assert done.returncode == 1
    assert said in done.stderr
    assert not done.stdout
    assert sorted(tmp_path.rglob("*")) == before
