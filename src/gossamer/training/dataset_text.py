"""Text from the library `datasets` of Hugging Face, read as it streams in: never a whole data set in memory."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

from .sources import Piece, Place, UnreadableText, read_piece

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset


class Where(TypedDict):
    """What of a data set is the text."""

    files: Sequence[str]
    subset: str | None
    split: str
    column: str


def named(path: str, *, files: Sequence[str], subset: str | None, split: str, column: str) -> tuple[str, ...]:
    """The sources of the text, for a folder of its tokens to keep.

    >>> named("json", files=["a.jsonl"], subset=None, split="train", column="text")
    ('datasets:json:train:text', 'a.jsonl')
    """
    return f"datasets:{':'.join([path, *([subset] if subset else []), split, column])}", *files


class DatasetText:
    """A column of texts of a data set, each of them a document; empty ones are left out.

    The rows come as they lie in the data set, file after file. Nothing is downloaded but what is read, and no code of
    a data set runs.

    Args:
        path: A data set of the Hub, a folder, or a format: json, parquet, text, csv, arrow.
        files: Files of the format, or of the data set; names, patterns or addresses. Empty: those that it has.
        subset: Which of a data set's configurations; None is the only one.
        split: Which of its splits.
        column: Which column holds the text.

    Raises:
        UnreadableText: The library is not installed, or the data set, split or column is not there. A text that is
            none is found when its row is read.
    """

    def __init__(
        self,
        path: str,
        *,
        files: Sequence[str] = (),
        subset: str | None = None,
        split: str = "train",
        column: str = "text",
    ):
        self._path, self._files, self._subset = path, tuple(files), subset
        self._split, self._column = split, column
        self.sources = named(path, files=self._files, subset=subset, split=split, column=column)
        self._stream()  # what is wrong with it is said before anything is made

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the data set's revision, or of the files' names and times of change, with split and column."""
        found = self._builder
        facts = [found.hash, found.config_id, self._split, self._column]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def pieces(self, place: Place = None) -> Iterator[Piece]:
        """The texts in pieces, from the place that an earlier piece gave."""
        stream = self._stream()
        if place is not None:
            stream.load_state_dict(place)
        for row in stream:
            text = self._text(row)
            if not text:
                continue
            parts = io.StringIO(text, newline="")
            part = read_piece(parts)
            while part:
                following = read_piece(parts)
                yield Piece(part, not following, None if following else stream.state_dict)
                part = following

    @cached_property
    def _builder(self) -> DatasetBuilder:
        try:
            from datasets import load_dataset_builder
        except ModuleNotFoundError as error:
            raise UnreadableText(
                f"data.dataset is {self._path!r}, and {error.name} is not installed; pip install 'gossamer[datasets]', "
                "or give text files as data.sources"
            ) from error
        try:
            return load_dataset_builder(self._path, self._subset, data_files=list(self._files) or None)
        except Exception as error:  # the library, its file systems and its network have no class in common
            raise UnreadableText(
                f"data set {self._path} cannot be opened: {error}; correct data.dataset, data.dataset_files or "
                "data.dataset_subset"
            ) from error

    def _stream(self) -> IterableDataset:
        builder = self._builder
        try:
            stream: Any = builder.as_streaming_dataset(self._split)
        except ValueError as error:
            raise UnreadableText(f"data set {self._path}: {error}; give another data.dataset_split") from error
        if stream.column_names is None:  # of files that say nothing of themselves: their rows do
            return stream
        self._require_column(stream.column_names)
        return stream.select_columns([self._column])

    def _require_column(self, there: Iterable[str]) -> None:
        if self._column not in there:
            raise UnreadableText(
                f"data set {self._path} has no column {self._column!r}; give one of {', '.join(there)} as "
                "data.dataset_column"
            )

    def _text(self, row: dict[str, Any]) -> str:
        self._require_column(row)
        text = row[self._column]
        if text is not None and not isinstance(text, str):
            raise UnreadableText(
                f"data set {self._path}: column {self._column!r} holds {type(text).__name__}s and no text; give "
                "another data.dataset_column"
            )
        return text or ""
