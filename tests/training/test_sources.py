"""Text from files, folders and standard input, and one clear error for everything that is not text."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from gossamer.training import sources
from gossamer.training.sources import Corpus, Place, Text, UnreadableText, python_library_sources


def read(text: Text, place: Place = None) -> list[tuple[str, bool]]:
    return [(piece.text, piece.ends) for piece in text.pieces(place)]


def test_files_and_folders_are_read_in_the_order_given(tmp_path) -> None:
    (tmp_path / "b.txt").write_text("b\r\nb")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "a.txt").write_text("a")
    (tmp_path / "folder" / "empty.txt").write_text("")
    (tmp_path / "folder" / ".hidden").write_text("no")
    (tmp_path / "folder" / ".git").mkdir()
    (tmp_path / "folder" / ".git" / "c.txt").write_text("no")
    corpus = Corpus([tmp_path / "b.txt", tmp_path / "folder"])
    for _ in range(2):
        assert read(corpus) == [("b\r\nb", True), ("a", True)]


def test_a_long_text_comes_in_pieces_that_end_with_a_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 10)
    text = "".join(f"{'é' * (n % 7)}\n" for n in range(40))
    (tmp_path / "a.txt").write_text(text)
    pieces = read(Corpus([tmp_path / "a.txt"]))
    assert "".join(piece for piece, _ in pieces) == text
    assert len(pieces) > 5
    assert all(piece.endswith("\n") for piece, _ in pieces)
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_reading_goes_on_from_any_piece(tmp_path, monkeypatch, encoding: str) -> None:
    monkeypatch.setattr(sources, "PIECE", 10)
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(f"{'é語' * (n % 9)}\r\n" for n in range(20)), encoding=encoding)
    corpus = Corpus([tmp_path / "a", tmp_path / "b"], encoding=encoding)
    whole, places = read(corpus), [json.dumps(piece.place()) for piece in corpus.pieces()]
    assert len(whole) > 20
    for number, place in enumerate(places, 1):
        assert read(corpus, json.loads(place)) == whole[number:]


def test_a_fingerprint_is_of_names_sizes_and_times(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("a")
    before = Corpus([tmp_path / "a.txt"]).fingerprint
    assert Corpus([tmp_path / "a.txt"]).fingerprint == before
    assert Corpus([tmp_path / "a.txt"], encoding="latin-1").fingerprint != before
    os.utime(tmp_path / "a.txt", ns=(0, 0))
    assert Corpus([tmp_path / "a.txt"]).fingerprint != before
    typed = []
    for text in (b"a", b"b"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        typed.append(Corpus(["-"]).fingerprint)
    assert typed[0] != typed[1]


def test_a_line_without_end_is_cut(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 10)
    (tmp_path / "a.txt").write_text("x" * 95)
    assert [len(piece) for piece in Corpus([tmp_path / "a.txt"]).texts()] == [20, 20, 20, 20, 15]


def test_standard_input_can_be_read_twice(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("né".encode())))
    corpus = Corpus(["-"])
    assert list(corpus.texts()) == ["né"]
    assert list(corpus.texts()) == ["né"]


def test_another_encoding_is_read_when_it_is_given(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(b"na\xefve")
    assert list(Corpus([tmp_path / "a.txt"], encoding="latin-1").texts()) == ["naïve"]
    with pytest.raises(UnreadableText, match=r"a\.txt is not utf-8 text \(byte 0xef\).*data\.encoding"):
        list(Corpus([tmp_path / "a.txt"]).texts())


def test_binary_is_refused(tmp_path) -> None:
    (tmp_path / "a.bin").write_bytes(b"text\0more")
    with pytest.raises(UnreadableText, match=r"a\.bin is binary"):
        list(Corpus([tmp_path / "a.bin"]).texts())


@pytest.mark.parametrize("name", ["missing.txt", "empty.txt", "empty", "pipe"])
def test_a_source_without_text_is_named(name: str, tmp_path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableText, match=rf"text source .*{name}.*; give"):
        Corpus([tmp_path / name])


def test_no_source_and_no_input_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(UnreadableText, match="sources is empty"):
        Corpus([])
    with pytest.raises(UnreadableText, match="source - is empty"):
        Corpus(["-"])


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(UnreadableText, match=r"a\.txt may not be read; change its permissions"):
        Corpus([tmp_path / "a.txt"])


def test_the_standard_library_is_a_corpus() -> None:
    files = python_library_sources(max_bytes=300_000)
    assert files == python_library_sources(max_bytes=300_000)
    assert 200_000 < sum(os.path.getsize(file) for file in files) <= 300_000
    assert not {"site-packages", "test", "tests"} & {part for file in files for part in Path(file).parts}
    assert all(text for text in Corpus(files).texts())
