"""A run folder is born whole, entered by one process at a time and never overwritten."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer.tokenizer import load_tokenizer
from gossamer.training.config import DataConfig, ParallelConfig, TrainConfig
from gossamer.training.run_folder import opened, require_same, start
from gossamer.training.sources import UnreadableText

Tiny = Callable[..., TrainConfig]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_run_holds_its_configuration_tokenizer_and_tokens(tiny: Tiny, tmp_path) -> None:
    start(tiny())
    assert TrainConfig.from_toml(tmp_path / "run" / "config.toml") == tiny()
    assert load_tokenizer(tmp_path / "run" / "tokenizer").vocab_size == 257
    assert sorted(os.listdir(tmp_path / "run")) == ["config.toml", "data", "tokenizer"]


def test_tokens_may_be_elsewhere_and_shared(tiny: Tiny, tmp_path) -> None:
    shared = tmp_path / "shared"
    for name in ("one", "two"):
        config = tiny(folder=str(tmp_path / name))
        start(replace(config, data=replace(config.data, folder=str(shared))))
        assert sorted(os.listdir(tmp_path / name)) == ["config.toml", "tokenizer"]
    assert (shared / "tokens.json").is_file()


def test_a_run_is_never_started_over(tiny: Tiny, tmp_path) -> None:
    start(tiny())
    before = contents(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"run\.folder .*run holds a run; resume it, or give another folder"):
        start(tiny())
    assert contents(tmp_path / "run") == before


def test_a_folder_of_something_else_is_left_alone(tiny: Tiny, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"run\.folder .*run is not an empty folder; give a new one"):
        start(tiny())
    assert os.listdir(tmp_path / "run") == ["thesis.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"short", "needs 17; give more text"),
        (b"a\0b" * 100, "is binary"),
        (b"\xff" * 500, "is not utf-8 text"),
    ],
)
def test_text_that_cannot_be_used_leaves_no_folder(tiny: Tiny, text: Path, content: bytes, message: str) -> None:
    text.write_bytes(content)
    with pytest.raises(UnreadableText, match=message):
        start(tiny())
    assert os.listdir(text.parent) == [text.name]


def test_a_vocabulary_that_is_too_small_leaves_no_folder(tiny: Tiny, text: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size is 100"):
        start(tiny(model={"vocab_size": 100}))
    assert os.listdir(text.parent) == [text.name]


@pytest.mark.parametrize("name", ["fsync", "mkdir"])
def test_a_full_disk_is_one_message_and_leaves_no_folder(tiny: Tiny, text: Path, monkeypatch, name: str) -> None:
    config = tiny()

    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match=r"the run was not started; make room .* another run\.folder: '.*run'"):
        start(config)
    assert os.listdir(text.parent) == [text.name]


def test_a_changed_field_is_named(tiny: Tiny) -> None:
    start(tiny())
    require_same(tiny())
    require_same(replace(tiny(activation_checkpointing="full"), parallel=ParallelConfig("fsdp", context=2)))
    with pytest.raises(ValueError, match=r"run\.steps is 9, but the run in .* was started with 6; give run\.steps=6"):
        require_same(tiny(steps=9))
    with pytest.raises(ValueError, match=r"model\.dropout is 0\.2"):
        require_same(tiny(model={"dropout": 0.2}))
    with pytest.raises(ValueError, match=r"data\.tokenizer is None"):
        require_same(replace(tiny(), data=DataConfig(sources=tiny().data.sources, validation_share=0.1)))


def test_a_run_may_be_moved(tiny: Tiny, tmp_path) -> None:
    start(tiny())
    (tmp_path / "run").rename(tmp_path / "moved")
    with opened(tiny(folder=str(tmp_path / "moved")), resume=True) as folder:
        assert folder == tmp_path / "moved"


def test_there_must_be_a_run_to_resume(tiny: Tiny, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.folder .* holds no run to resume; start it without resume"):
        require_same(tiny())
    assert not (tmp_path / "run").exists()


def test_a_run_is_entered_by_one_at_a_time(tiny: Tiny) -> None:
    refused = pytest.raises(RuntimeError, match="another process is training the run in")
    with opened(tiny(), resume=False), refused, opened(tiny(), resume=True):
        pass
    with opened(tiny(), resume=True):
        pass
