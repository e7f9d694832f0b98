"""`gossamer prepare`: tokens that runs train on, made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gossamer.cli.flags import WrongUsage
from gossamer.cli.prepare import run
from gossamer.training import preparation
from gossamer.training.shards import Shards

from .conftest import TINY, Here


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[str, ...]:
    """Arguments that prepare a small text."""
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(300)))
    return (
        *("prepare", "--data.sources", str(tmp_path / "text.txt"), "--data.folder", str(tmp_path / "tokens")),
        *("--data.tokenizer", "bytes", "--workers", "2"),
    )


def test_tokens_are_made_once_and_a_run_trains_on_them(prepared, here: Here, tmp_path: Path) -> None:
    done = here(*prepared)
    assert done.returncode == 0, done.stderr
    shards = Shards.read(tmp_path / "tokens")
    assert f"tokens: {shards.tokens:,} tokens, {shards.validation_tokens} of them for validation" in done.stdout
    before = (tmp_path / "tokens" / "tokens-00000.bin").stat().st_mtime_ns
    assert here(*prepared).returncode == 0
    assert (tmp_path / "tokens" / "tokens-00000.bin").stat().st_mtime_ns == before
    trained = here(
        *("train", *TINY, "--run.folder", str(tmp_path / "run"), "--data.folder", str(tmp_path / "tokens")),
        *("--data.packing", "documents", "--run.steps", "2"),
    )
    assert trained.returncode == 0, trained.stderr
    assert not (tmp_path / "run" / "data").exists()


def test_a_data_set_of_files_becomes_tokens(here: Here, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = [json.dumps({"title": "squares", "body": f"{n} times {n} is {n * n}.\n" * 9}) for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    arguments = ("prepare", "--data.dataset", "json", "--data.dataset-files", str(tmp_path / "rows.jsonl"))
    arguments += ("--data.folder", str(tmp_path / "tokens"), "--data.tokenizer", "bytes", "--workers", "1")
    wrong = here(*arguments)
    assert wrong.returncode == 1
    assert "no column 'text'; give one of title, body as data.dataset_column" in wrong.stderr
    done = here(*arguments, "--data.dataset-column", "body")
    assert done.returncode == 0, done.stderr
    assert Shards.read(tmp_path / "tokens").sources[0] == "datasets:json:train:body"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((), "data.folder is not given"),
        (("--data.folder", "tokens", "--workers", "0"), "workers is 0; give at least 1"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_named(arguments: tuple[str, ...], fault: str) -> None:
    with pytest.raises(WrongUsage, match=fault):
        run(arguments)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_preparation_says_that_it_goes_on(tmp_path: Path, monkeypatch, capsys, stop) -> None:
    def stopped(*arguments: object, **settings: object) -> None:
        raise stop

    monkeypatch.setattr(preparation, "tokens_for", stopped)
    with pytest.raises(stop):
        run(("--data.folder", str(tmp_path / "tokens")))
    assert "what is done is kept, and the same command goes on from there" in capsys.readouterr().err


def test_a_runs_file_says_what_to_prepare(tmp_path: Path, capsys) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(300)))
    (tmp_path / "run.toml").write_text(
        f"[model]\nvocab_size = 300\ncontext_size = 64\n[data]\nsources = ['{tmp_path / 'text.txt'}']\n"
        f"folder = '{tmp_path / 'tokens'}'\n"
    )
    run(("--config", str(tmp_path / "run.toml"), "--workers", "1"))
    assert Shards.read(tmp_path / "tokens").vocab_size == 300
    assert "of 300 kinds" in capsys.readouterr().out
