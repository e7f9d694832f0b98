"""Where text comes from: files, folders, standard input, or the Python that runs this."""

import hashlib
import io
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

STANDARD_INPUT = "-"
PIECE = 2**18  # characters: short enough to spread over cores, long enough that cuts between pieces do not matter
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"}


class UnreadableText(ValueError):
    """A text source that is missing, empty or not text; the message names it and the fix."""


class Corpus:
    """The text of some files, folders and standard input, in pieces, the same pieces every time.

    Files of a folder come in an order that is scrambled but always the same, so that a part of the text is a
    fair sample of the folder. Hidden files are left out. Standard input is read at once and kept in memory.

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
        self._typed = sys.stdin.buffer.read() if STANDARD_INPUT in self.sources else b""
        self._files = [file for source in self.sources for file in self._files_of(source)]

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """(text, whether a document ends with it) for each piece, cut at the end of a line if it can be."""
        for name in self._files:
            with self._open(name) as stream:
                text = self._read(stream, name)
                while text:
                    following = self._read(stream, name)
                    yield text, not following
                    text = following

    def texts(self) -> Iterator[str]:
        """The pieces alone."""
        return (text for text, _ in self.pieces())

    def _files_of(self, source: str) -> list[str]:
        path = Path(source)
        if source == STANDARD_INPUT:
            size, files = len(self._typed), [STANDARD_INPUT]
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

    def _open(self, name: str) -> AbstractContextManager[TextIO]:
        if name == STANDARD_INPUT:
            return io.TextIOWrapper(io.BytesIO(self._typed), encoding=self._encoding, newline="")
        return open(name, encoding=self._encoding, newline="")

    def _read(self, stream: TextIO, name: str) -> str:
        try:
            text = stream.read(PIECE)
            text += stream.readline(PIECE)
        except UnicodeDecodeError as error:
            raise UnreadableText(
                f"text source {name} is not {self._encoding} text (byte 0x{error.object[error.start]:02x}); "
                "leave it out, or give its encoding as data.encoding, such as latin-1"
            ) from error
        if "\0" in text:
            raise UnreadableText(f"text source {name} is binary (it holds a zero byte); leave it out")
        return text


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
