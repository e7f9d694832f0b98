"""`gossamer generate`: where the prompt comes from, where the model is, and text as soon as it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gossamer.cli.generate import decoded, locate
from gossamer.tokenizer import ByteTokenizer

from .conftest import Here, Shell

SETTINGS = ("--max-new-tokens", "8", "--seed", "0")


def test_prompt_flag_file_and_input_give_the_same_text(trained: Path, here: Here, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("def f")
    flag = here("generate", "--model", str(trained), "--prompt", "def f", *SETTINGS)
    file = here("generate", "--model", str(trained), "--prompt-file", "prompt.txt", *SETTINGS)
    given = shell("generate", "--model", str(trained), *SETTINGS, given="def f")
    assert flag.returncode == 0, flag.stderr
    assert flag.stdout.startswith("def f") and len(flag.stdout) > len("def f\n")
    assert flag.stdout == file.stdout == given.stdout


def test_both_kinds_of_prompt_are_wrong_usage(trained: Path, here: Here) -> None:
    done = here("generate", "--model", str(trained), "--prompt", "a", "--prompt-file", "b")
    assert done.returncode == 2
    assert "give one of them" in done.stderr


def test_a_prompt_that_is_not_text_is_named(trained: Path, here: Here, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"abc\xff")
    done = here("generate", "--model", str(trained), "--prompt-file", "binary")
    assert done.returncode == 1
    assert "binary is not UTF-8 text (byte 3)" in done.stderr


def test_a_prompt_longer_than_the_context_is_named(trained: Path, here: Here) -> None:
    done = here("generate", "--model", str(trained), "--prompt", "x" * 99)
    assert done.returncode == 1
    assert "99 tokens" in done.stderr


def test_a_run_a_checkpoint_and_a_folder_of_its_own_are_all_models(trained: Path, tmp_path: Path) -> None:
    (checkpoint,) = (trained / "checkpoints").iterdir()
    assert locate(trained) == (checkpoint, trained / "tokenizer")
    assert locate(checkpoint)[0] == checkpoint
    assert locate(checkpoint)[1].samefile(trained / "tokenizer")
    shutil.copytree(checkpoint, tmp_path / "own")
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        locate(tmp_path / "own")
    shutil.copy(trained / "tokenizer" / "tokenizer.json", tmp_path / "own")
    assert locate(tmp_path / "own") == (tmp_path / "own", tmp_path / "own")


def test_a_character_is_shown_when_all_its_bytes_are_there() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("aé数")
    assert list(decoded(tokenizer, ids, stop=())) == ["a", "é", "数"]
    assert list(decoded(tokenizer, ids[:2], stop=())) == ["a", "\ufffd"]


def test_a_stop_token_ends_the_text_and_is_not_shown() -> None:
    tokenizer = ByteTokenizer()
    assert list(decoded(tokenizer, [97, tokenizer.end_of_text, 98], stop=(tokenizer.end_of_text,))) == ["a"]
