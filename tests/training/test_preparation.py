"""Preparing gives the same bytes for any number of processes and after any interruption, in bounded memory."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gossamer.tokenizer import BPETokenizer, ByteTokenizer
from gossamer.training import preparation, shards, sources, tokenising
from gossamer.training.config import DataConfig
from gossamer.training.journal import making
from gossamer.training.preparation import prepare, tokens_for
from gossamer.training.sources import Corpus, Piece, UnreadableText

KILLS = 5
LINES = 16_000  # far more than a child makes tokens of before it is killed


@pytest.fixture
def small_units(monkeypatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 100)
    monkeypatch.setattr(tokenising, "UNIT", 400)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1001)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Some text in three files, 6 kilobytes, of which one is empty and one has no line's end."""
    (tmp_path / "text").mkdir()
    for name, text in (
        ("a", "".join(f"{n} times {n} is {n * n}.\n" for n in range(200))),
        ("b", ""),
        ("c", "é語" * 900),
    ):
        (tmp_path / "text" / name).write_text(text)
    return tmp_path / "text"


def content(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stopping(after: int):
    """What stops a preparation when that many units are written."""
    written = []

    def stop(tokens: int) -> None:
        written.append(tokens)
        if len(written) == after:
            raise KeyboardInterrupt

    return stop


def left_of(tokens: Path) -> Path:
    return tokens.with_name(f".{tokens.name}.preparing")


def test_any_number_of_processes_makes_the_same_bytes(small_units, folder, tmp_path) -> None:
    alone = prepare(Corpus([folder]), tmp_path / "alone", vocab_size=270)
    assert prepare(Corpus([folder]), tmp_path / "three", vocab_size=270, workers=3) == alone
    assert content(tmp_path / "three") == content(tmp_path / "alone")
    assert len(alone.files) > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "text", "three"]


def test_an_interrupted_preparation_goes_on_wherever_it_was(small_units, folder, tmp_path) -> None:
    written = []
    prepare(Corpus([folder]), tmp_path / "whole", vocab_size=270, on_unit=written.append)
    assert len(written) > 10
    for after in range(1, len(written) + 1):
        with pytest.raises(KeyboardInterrupt):
            prepare(Corpus([folder]), tmp_path / "cut", vocab_size=270, on_unit=stopping(after))
        assert not (tmp_path / "cut").exists()
        again = []
        prepare(Corpus([folder]), tmp_path / "cut", vocab_size=270, on_unit=again.append)
        assert again == written[after:]
        assert content(tmp_path / "cut") == content(tmp_path / "whole")
        assert not left_of(tmp_path / "cut").exists()
        shutil.rmtree(tmp_path / "cut")


def cut_a_shard(left: Path) -> None:
    os.truncate(left / "tokens" / "tokens-00001.bin", 1000)


def flip_a_bit(left: Path) -> None:
    shard = left / "tokens" / "tokens-00000.bin"
    found = bytearray(shard.read_bytes())
    found[901] ^= 1
    shard.write_bytes(found)


def write_behind_the_journal(left: Path) -> None:
    with open(left / "tokens" / "tokens-00001.bin", "ab") as shard:
        shard.write(b"\1" * 99)
    (left / "tokens" / "tokens-00009.bin").write_bytes(b"\1" * 99)


def cut_the_journal(left: Path) -> None:
    os.truncate(left / "journal.jsonl", (left / "journal.jsonl").stat().st_size - 7)


def cut_the_journal_s_last_line_end(left: Path) -> None:
    os.truncate(left / "journal.jsonl", (left / "journal.jsonl").stat().st_size - 1)


def spoil_the_head(left: Path) -> None:
    (left / "journal.jsonl").write_text("{" + (left / "journal.jsonl").read_text())


def lose_the_tokenizer(left: Path) -> None:
    (left / "tokenizer" / "tokenizer.json").unlink()


def change_the_tokenizer(left: Path) -> None:
    BPETokenizer.train(["other words"], 270).save(left / "tokenizer")


@pytest.mark.parametrize(
    "damage",
    [
        cut_a_shard,
        flip_a_bit,
        write_behind_the_journal,
        cut_the_journal,
        cut_the_journal_s_last_line_end,
        spoil_the_head,
        lose_the_tokenizer,
        change_the_tokenizer,
    ],
)
def test_what_does_not_agree_with_the_journal_is_made_again(small_units, folder, tmp_path, damage) -> None:
    prepare(Corpus([folder]), tmp_path / "whole", vocab_size=270)
    with pytest.raises(KeyboardInterrupt):
        prepare(Corpus([folder]), tmp_path / "cut", vocab_size=270, on_unit=stopping(8))
    damage(left_of(tmp_path / "cut"))
    prepare(Corpus([folder]), tmp_path / "cut", vocab_size=270)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_another_text_or_tokenizer_begins_anew(small_units, folder, tmp_path) -> None:
    def stopped_at(count: int, tokenizer=None) -> None:
        with pytest.raises(KeyboardInterrupt):
            prepare(Corpus([folder]), tmp_path / "tokens", tokenizer, vocab_size=270, on_unit=stopping(count))

    stopped_at(3)
    stopped_at(2, ByteTokenizer())
    stopped_at(3, ByteTokenizer())
    (folder / "a").write_text("other text\n" * 300)
    prepare(Corpus([folder]), tmp_path / "tokens", ByteTokenizer())
    prepare(Corpus([folder]), tmp_path / "straight", ByteTokenizer())
    assert content(tmp_path / "tokens") == content(tmp_path / "straight")


def test_a_tokenizer_is_trained_on_the_beginning(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(preparation, "TRAINING_TEXT", 100)
    monkeypatch.setattr(sources, "PIECE", 90)
    made = prepare(Corpus([folder / "a", folder / "c"]), tmp_path / "tokens", vocab_size=300)
    beginning = (folder / "a").read_text()[:400]
    pieces = []
    for piece in Corpus([folder / "a"]).texts():
        pieces.append(piece)
        if sum(map(len, pieces)) >= 100:
            break
    assert beginning.startswith("".join(pieces))
    assert made.tokenizer == BPETokenizer.train(pieces, 300).digest


def test_one_process_at_a_time(folder, tmp_path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"another process is preparing .*tokens; wait for it or stop it"),
        making(tmp_path / "tokens"),
    ):
        prepare(Corpus([folder]), tmp_path / "tokens", ByteTokenizer())


def test_nothing_is_written_over(folder, tmp_path) -> None:
    (tmp_path / "tokens").mkdir()
    prepare(Corpus([folder]), tmp_path / "tokens", ByteTokenizer())
    with pytest.raises(FileExistsError, match="already exists and is not an empty folder"):
        prepare(Corpus([folder]), tmp_path / "tokens", ByteTokenizer())
    with pytest.raises(ValueError, match="workers is 0; give at least 1"):
        prepare(Corpus([folder]), tmp_path / "other", ByteTokenizer(), workers=0)


def test_what_is_done_stays_unless_the_text_is_at_fault(small_units, folder, tmp_path) -> None:
    for fault, stays in ((OSError("no room"), True), (ValueError("a broken row"), True), (UnreadableText("x"), False)):

        def fail(tokens: int, fault: Exception = fault) -> None:
            raise fault

        with pytest.raises(type(fault)):
            prepare(Corpus([folder]), tmp_path / "tokens", ByteTokenizer(), on_unit=fail)
        assert left_of(tmp_path / "tokens").exists() == stays
    with pytest.raises(ValueError, match="give at least 257"):
        prepare(Corpus([folder]), tmp_path / "tokens", vocab_size=100)
    assert not left_of(tmp_path / "tokens").exists()


def test_what_a_kill_leaves_beside_complete_tokens_is_removed(folder, tmp_path) -> None:
    config = DataConfig(sources=(str(folder),), tokenizer="bytes")
    first = tokens_for(config, tmp_path / "tokens", vocab_size=257, context_size=8)
    left_of(tmp_path / "tokens").mkdir()
    assert tokens_for(config, tmp_path / "tokens", vocab_size=257, context_size=8) == first
    assert not left_of(tmp_path / "tokens").exists()


def test_a_process_that_is_ended_is_named_and_its_work_done_again(small_units, folder, tmp_path) -> None:
    def end_a_worker(tokens: int) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(RuntimeError, match=r"was ended from outside.*what is done is kept: prepare again"):
        prepare(Corpus([folder]), tmp_path / "tokens", ByteTokenizer(), workers=2, on_unit=end_a_worker)
    prepare(Corpus([folder]), tmp_path / "tokens", ByteTokenizer())
    prepare(Corpus([folder]), tmp_path / "straight", ByteTokenizer())
    assert content(tmp_path / "tokens") == content(tmp_path / "straight")


class Endless:
    """A text as long as one likes, of which nothing is kept."""

    sources = ("endless",)
    fingerprint = "endless"

    def __init__(self, pieces: int):
        self._pieces = pieces

    def pieces(self, place: int | None = None) -> Iterator[Piece]:
        for number in range(place or 0, self._pieces):
            yield Piece(f"{number:09d}\n" * 400, number % 10 == 0, lambda after=number + 1: after)


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tokenising, "UNIT", 16_000)
    peaks = []
    for pieces in (40, 400):
        tracemalloc.start()
        made = prepare(Endless(pieces), tmp_path / str(pieces), ByteTokenizer())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert made.tokens == pieces * 4000 + pieces // 10
    assert peaks[1] < 1.1 * peaks[0] < 2**21


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen]:
    script = Path(__file__).with_name("prepare_and_die.py")
    with open(tmp_path / "errors.txt", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    with process:
        yield process
        process.stdin.close()


def child_of(worker: subprocess.Popen, text: Path, tokens: Path, workers: int) -> int:
    arguments = ["--data.sources", str(text), "--data.folder", str(tokens), "--vocab-size", "300"]
    worker.stdin.write(json.dumps([*arguments, "--workers", str(workers)]) + "\n")
    worker.stdin.flush()
    return int(worker.stdout.readline())


def end_of(worker: subprocess.Popen) -> tuple[int, str]:
    """(exit status, what was printed) of the child."""
    printed = ""
    while not (line := worker.stdout.readline()).strip().isdigit():
        printed += line
    return int(line), printed


def written(tokens: Path) -> int:
    journal = left_of(tokens) / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_killed_preparation_always_goes_on(tmp_path: Path, worker: subprocess.Popen) -> None:
    text, killed, straight = (tmp_path / name for name in ("text.txt", "killed", "straight"))
    text.write_text("".join(f"{n} times {n} is {n * n}, and {n} and {n} is {2 * n}.\n" for n in range(LINES)))
    child_of(worker, text, straight, 1)
    assert end_of(worker)[0] == 0, (tmp_path / "errors.txt").read_text()
    moments = random.Random(0)
    for kill in range(KILLS):
        child = child_of(worker, text, killed, 1 + kill % 2)
        goal, patience = written(killed) + moments.randrange(8), time.monotonic() + 60
        while written(killed) < goal and time.monotonic() < patience and psutil.Process(child).status() != "zombie":
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.01))
        helpers = psutil.Process(child).children(recursive=True)
        os.kill(child, signal.SIGKILL)
        assert end_of(worker)[0] == signal.SIGKILL, (tmp_path / "errors.txt").read_text()
        assert psutil.wait_procs(helpers, timeout=20)[1] == [], "a process outlives the one that it works for"
        assert not killed.exists()
    child_of(worker, text, killed, 2)
    assert end_of(worker)[0] == 0, (tmp_path / "errors.txt").read_text()
    assert content(killed) == content(straight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.txt", "killed", "straight", "text.txt"]
