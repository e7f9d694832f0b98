"""`gossamer generate`: where the prompt comes from, where the model is, and text as soon as it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from gossamer.cli.generate import Generate, decoded, locate, read_prompts
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


class Spaced:
    """Drops the space before the first id, as Llama's vocabulary does."""

    words = (" hello", " world", "!")

    def encode(self, text: str) -> list[int]:
        return [self.words.index(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[id] for id in ids).removeprefix(" ")


def test_spaces_between_words_are_shown() -> None:
    assert "".join(decoded(Spaced(), [1, 2, 1], behind=[0], stop=())) == " world! world"
    assert "".join(decoded(Spaced(), [0, 1], stop=())) == "hello world"


@pytest.mark.parametrize(
    ("content", "prompts"),
    [("a\nb\n", ["a", "b"]), ("a\r\n\r\nb", ["a", "", "b"]), ("a\x0cb\u2028c\n", ["a\x0cb\u2028c"])],
    ids=["lines", "windows", "no ends"],
)
def test_a_prompt_ends_with_its_line_and_with_nothing_else(content: str, prompts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content.encode())
    assert read_prompts(Generate(model=tmp_path, prompts=file)) == prompts


def test_several_texts_without_end_are_wrong_usage(trained: Path, here: Here, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    done = here("generate", "--model", str(trained), "--prompts", str(tmp_path / "prompts.txt"), "--endless")
    assert done.returncode == 2
    assert "--endless is for one prompt" in done.stderr
