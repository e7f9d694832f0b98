"""Tokens in the making: what is done of them survives a kill, and is believed only where it agrees with itself.

Beside the folder to be made stands `.NAME.preparing`. It holds the tokens so far, the tokenizer, and a journal: a line
that says what is being made, and then one for each unit of text whose tokens are written: how many tokens there are
by then, the SHA-256 of the unit's own, and where the text behind it begins. A line is written after its tokens.
Nothing else is needed to go on: the tokens are read back as far as they agree with the lines, and the rest is cut off.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..atomic import new_folder, publish, require_free, write_file
from ..tokenizer import Tokenizer, load_tokenizer
from .shards import ShardWriter
from .sources import Place, UnreadableText

TOKENIZER = "tokenizer"  # folder beside the shards
TOKENS = "tokens"
JOURNAL = "journal.jsonl"
LOCK = ".lock"


class Making:
    """A folder of tokens in the making, of which this process is the only maker."""

    def __init__(self, path: Path):
        self.tokens = path / TOKENS
        """The folder that is being filled."""
        self.tokenizer_folder = path / TOKENIZER
        self._path, self._journal = path, path / JOURNAL
        self._writer: ShardWriter

    def tokenizer(self, asked: dict[str, Any], make: Callable[[], Tokenizer]) -> Tokenizer:
        """The tokenizer of what was begun here for what is `asked`; where nothing was, all begins anew with `make`."""
        try:
            head = json.loads(self._lines()[0])
            tokenizer = load_tokenizer(self.tokenizer_folder)
            if head == {**asked, "tokenizer": tokenizer.digest}:
                return tokenizer
        except (IndexError, ValueError, OSError):
            pass  # nothing was begun, or what is left of it is damaged
        for left in (self.tokens, self.tokenizer_folder):
            shutil.rmtree(left, ignore_errors=True)
        self._journal.unlink(missing_ok=True)
        tokenizer = make()
        with new_folder(self.tokenizer_folder) as partial:
            tokenizer.save(partial)
        write_file(self._journal, _line({**asked, "tokenizer": tokenizer.digest}))
        return tokenizer

    def resume(self, writer: ShardWriter) -> Place:
        """Let `writer` go on behind what is done and agrees with the journal; where in the text that is."""
        self._writer, done, place, kept = writer, 0, None, 1
        lines = self._lines()
        for line in lines[1:]:
            try:
                unit = json.loads(line) if line.endswith(b"\n") else {}
                tokens = writer.written(done, unit["tokens"] - done)
                if hashlib.sha256(tokens).hexdigest() != unit["sha256"]:
                    break
                done, place, kept = unit["tokens"], unit["place"], kept + 1
            except (ValueError, TypeError, KeyError):
                break  # a line that was cut short
        os.truncate(self._journal, sum(map(len, lines[:kept])))
        writer.go_on(done)
        return place

    def append(self, tokens: bytes, place: Place) -> None:
        """Write the tokens of a unit, and then that they are written and where the text behind it begins."""
        self._writer.append(tokens)
        done = {"tokens": self._writer.tokens, "sha256": hashlib.sha256(tokens).hexdigest(), "place": place}
        with open(self._journal, "ab") as journal:
            journal.write(_line(done))

    def _lines(self) -> list[bytes]:
        return self._journal.read_bytes().splitlines(keepends=True) if self._journal.is_file() else []


@contextmanager
def making(folder: str | Path) -> Iterator[Making]:
    """Tokens in the making, new ones or those begun before, which become `folder` when the block ends.

    If the block raises, or the process is killed, `folder` is never seen, and what is done stays for the next call.
    Where the text itself is at fault nothing stays: it has to change, and is another one then.

    Raises:
        FileExistsError: `folder` holds something already.
        RuntimeError: Another process is making it.
    """
    folder = Path(folder).resolve()
    require_free(folder)
    path = _beside(folder)
    path.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path / LOCK).acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"another process is preparing {folder}; wait for it or stop it") from None
    with lock:
        try:
            require_free(folder)
            made = Making(path)
            yield made
            publish(made.tokens, folder)
        except BaseException as error:
            if isinstance(error, UnreadableText) or not (path / JOURNAL).is_file():
                shutil.rmtree(path, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: str | Path) -> None:
    """Remove what a process left beside `folder` that was killed when the folder was complete."""
    shutil.rmtree(_beside(Path(folder).resolve()), ignore_errors=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.preparing")


def _line(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts).encode() + b"\n"
