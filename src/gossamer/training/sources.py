"""Where text comes from: files, folders, standard input, or the Python that runs this."""

import hashlib
import io
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Protocol, TextIO

STANDARD_INPUT = "-"
PIECE = 2**18  # characters: short enough to spread over cores, long enough that cuts between pieces do not matter
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"}


class UnreadableText(ValueError):
    """A text source that is missing, empty or not text; the message names it and the fix."""


Place = Any
"""Where in the text to go on reading: a plain value that JSON can hold, which its source alone understands."""


class Piece(NamedTuple):
    """A stretch of text.

    Attributes:
        text: Not empty.
        ends: Whether a document ends with it.
        place: Says where the text behind it begins, until the next piece is asked for; None where reading cannot
            go on between the two.
    """

    text: str
    ends: bool
    place: Callable[[], Place] | None


class Text(Protocol):
    """Text that comes in pieces, the same pieces every time, from the beginning or from a place in it.

    Attributes:
        sources: What the text is of, in words that are the same for the same text.
    """

    sources: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Another one where the text may have changed."""
        ...

    def pieces(self, place: Place = None) -> Iterator[Piece]:
        """The pieces from `place` on; None is the beginning."""
        ...


class Corpus:
    """The text of some files, folders and standard input, in pieces, the same pieces every time.

    Files of a folder come in an order that is scrambled but always the same, so that a part of the text is a
    fair sample of the folder. Hidden files are left out. Standard input is read at once and kept in a temporary file.

    Args:
        sources: Files, folders, or `"-"` for standard input.
        encoding: Character encoding of all of them.

    Raises:
        UnreadableText: A source is missing, may not be read, is empty, or is no file or folder. Text that
            cannot be decoded is found when its piece is read.
    """

    def __init__(self, sources: Sequence[str | Path], *, encoding: str = "utf-8"):
        if not sources:
            raise UnreadableText("sources is empty; give at least one text file, folder, or - for standard input")
        self.sources = tuple(str(source) for source in sources)
        self._encoding = encoding
        self._files = [file for source in self.sources for file in self._files_of(source)]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the files' names, sizes and times of change, and of all that came from standard input."""
        facts = [self._encoding, PIECE, *map(self._facts, self._files)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def pieces(self, place: Place = None) -> Iterator[Piece]:
        """The text in pieces, cut at the end of a line if it can be, from the place that an earlier piece gave."""
        first, start = place or (0, 0)
        for number in range(first, len(self._files)):
            name = self._files[number]
            with self._opened(name) as stream:
                stream.seek(start)
                start, text = 0, self._read(stream, name)
                while text:
                    behind = stream.tell()
                    following = self._read(stream, name)
                    after = [number, behind] if following else [number + 1, 0]
                    yield Piece(text, not following, lambda after=after: after)
                    text = following

    def texts(self) -> Iterator[str]:
        """The pieces' texts alone."""
        return (piece.text for piece in self.pieces())

    @cached_property
    def _typed(self) -> int:
        """Descriptor of a file without a name that holds the standard input."""
        with TemporaryFile() as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)
            kept.flush()
            return os.dup(kept.fileno())

    def _files_of(self, source: str) -> list[str]:
        path = Path(source)
        if source == STANDARD_INPUT:
            size, files = os.fstat(self._typed).st_size, [STANDARD_INPUT]
        elif path.is_dir():
            files = [str(file) for file in scrambled(_files_below(path), path)]
            size = sum(os.path.getsize(file) for file in files)
        elif path.is_file():
            size, files = path.stat().st_size, [source]
        else:
            state = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise UnreadableText(f"text source {source} {state}; give a text file, a folder, or - for standard input")
        if not size:
            raise UnreadableText(f"text source {source} is empty; give one that holds text")
        for file in files:
            if file != STANDARD_INPUT and not os.access(file, os.R_OK):
                raise UnreadableText(f"text source {file} may not be read; change its permissions or leave it out")
        return files

    def _facts(self, name: str) -> list[str | int]:
        if name == STANDARD_INPUT:
            with self._bytes(name) as stream:
                return [name, hashlib.file_digest(stream, "sha256").hexdigest()]
        found = os.stat(name)
        return [name, found.st_size, found.st_mtime_ns]

    def _bytes(self, name: str) -> io.BufferedReader:
        if name != STANDARD_INPUT:
            return open(name, "rb")
        os.lseek(self._typed, 0, os.SEEK_SET)
        return open(os.dup(self._typed), "rb")

    @contextmanager
    def _opened(self, name: str) -> Iterator[TextIO]:
        with io.TextIOWrapper(self._bytes(name), encoding=self._encoding, newline="") as stream:
            yield stream

    def _read(self, stream: TextIO, name: str) -> str:
        try:
            text = read_piece(stream)
        except UnicodeDecodeError as error:
            raise UnreadableText(
                f"text source {name} is not {self._encoding} text (byte 0x{error.object[error.start]:02x}); "
                "leave it out, or give its encoding as data.encoding, such as latin-1"
            ) from error
        if "\0" in text:
            raise UnreadableText(f"text source {name} is binary (it holds a zero byte); leave it out")
        return text


def read_piece(stream: TextIO) -> str:
    """The next piece of a stream: `PIECE` characters, and more to the end of the line if that is not far."""
    return stream.read(PIECE) + stream.readline(PIECE)


def python_library_sources(*, max_bytes: int = 8 * 2**20) -> list[str]:
    """Source files of the running Python's standard library, `max_bytes` at most, always in the same order.

    Installed packages, the library's own tests and its tables of characters are left out. Every machine that
    runs this has the files, so they are the corpus when no other is given.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    chosen, room = [], max_bytes
    for file in scrambled(_files_below(library, suffix=".py", without=NOT_THE_LIBRARY), library):
        size = file.stat().st_size
        if 0 < size <= room:
            chosen.append(str(file))
            room -= size
    if not chosen:
        raise UnreadableText(f"Python's standard library has no source in {library}; give data.sources")
    return chosen


def scrambled(files: Iterable[Path], folder: Path) -> list[Path]:
    """`files` in an order that depends only on their names within `folder`, and not on the alphabet."""

    def digest(file: Path) -> str:
        return hashlib.sha256(file.relative_to(folder).as_posix().encode()).hexdigest()

    return sorted(files, key=digest)


def _files_below(folder: Path, *, suffix: str = "", without: Iterable[str] = ()) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in without]
        for name in names:
            if name.endswith(suffix) and not name.startswith(".") and Path(parent, name).is_file():
                yield Path(parent, name)
