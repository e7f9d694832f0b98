"""Files and folders are complete or absent, also when the writer dies in between."""

import os
import subprocess
import sys

import pytest

from gossamer.atomic import new_folder, remove_folder, write_file


def test_a_folder_appears_only_when_it_is_complete(tmp_path) -> None:
    target = tmp_path / "deep" / "run"
    with new_folder(target) as partial:
        (partial / "inside").mkdir()
        (partial / "inside" / "a.txt").write_text("a")
        assert not target.exists()
        assert partial.parent == target.parent  # a rename within one file system
    assert (target / "inside" / "a.txt").read_text() == "a"
    assert os.listdir(target.parent) == ["run"]


def test_a_failed_folder_leaves_nothing(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "run") as partial:
        (partial / "a.txt").write_text("a")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_may_be_filled(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    with new_folder(tmp_path / "run") as partial:
        (partial / "a.txt").write_text("a")
    assert os.listdir(tmp_path / "run") == ["a.txt"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_folder_with_something_in_it_is_never_replaced(when: str, tmp_path) -> None:
    mine = tmp_path / "run" / "mine.txt"

    def occupy() -> None:
        mine.parent.mkdir()
        mine.write_text("mine")

    if when == "before":
        occupy()
    with pytest.raises(OSError), new_folder(tmp_path / "run") as partial:
        (partial / "a.txt").write_text("a")
        occupy()
    assert mine.read_text() == "mine"
    assert os.listdir(tmp_path) == ["run"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path) -> None:
    killed = (
        "import os, sys; from gossamer.atomic import new_folder\n"
        "with new_folder(sys.argv[1]) as partial: (partial / 'a').write_text('a'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, tmp_path / "one"], check=False)
    assert len(os.listdir(tmp_path)) == 1  # the kill came before the rename
    with new_folder(tmp_path / "two"):
        pass
    assert os.listdir(tmp_path) == ["two"]


def test_what_another_process_is_writing_stays(tmp_path) -> None:
    with new_folder(tmp_path / "one") as first:
        (first / "a.txt").write_text("a")
        with new_folder(tmp_path / "two"):
            pass
    assert (tmp_path / "one" / "a.txt").exists()


def test_a_folder_is_removed_whole(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.txt").write_text("a")
    remove_folder(tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_or_untouched(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.txt"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"newer")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]
