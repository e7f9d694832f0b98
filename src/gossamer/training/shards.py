"""One long row of tokens, kept as flat binary files with a JSON sidecar."""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from .sources import UnreadableText

SIDECAR = "tokens.json"
SIDECAR_BYTES = 2**24
FORMAT = "gossamer-tokens-1"
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
SHARD_TOKENS = 2**27
NAME = re.compile(r"tokens-(\d{5,})\.bin")


Split = Literal["training", "validation"]


@dataclass(frozen=True)
class Shards:
    """The sidecar: which files hold the row, and what the tokens in them mean.

    Attributes:
        dtype: "uint16" or "uint32", little-endian.
        files: (name, tokens) of each file; together, in this order, they are the row.
        validation_tokens: How many tokens, at the end of the row, are the validation split.
        vocab_size: Every token is below it.
        tokenizer: Digest of the tokenizer that made the tokens.
        sources: Where the text came from.
        validation_share: The share of validation tokens that was asked for.
    """

    dtype: str
    files: tuple[tuple[str, int], ...]
    validation_tokens: int
    vocab_size: int
    tokenizer: str
    sources: tuple[str, ...]
    validation_share: float

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return sum(count for _, count in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 of the sidecar: runs that read the same tokens see the same digest."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Put the sidecar beside its files."""
        (folder / SIDECAR).write_text(self._json(), encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The sidecar in `folder`, believed only after every file has the name and the size it must have.

        Raises:
            FileNotFoundError: `folder` holds no sidecar.
            ValueError: The sidecar is not one, or a file does not agree with it.
        """
        path = Path(folder, SIDECAR)
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no tokens: {SIDECAR} is missing; prepare them first")
        try:
            _require(path.stat().st_size <= SIDECAR_BYTES, f"it has more than {SIDECAR_BYTES} bytes")
            shards = cls._from_json(json.loads(path.read_text(encoding="utf-8")))
            for name, count in shards.files:
                _require_file(Path(folder), name, count * DTYPES[shards.dtype].itemsize)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be trusted: {error}; prepare the tokens again in a new folder") from error
        return shards

    def _json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def _from_json(cls, stored: Any) -> Self:
        _require(isinstance(stored, Mapping) and stored.get("format") == FORMAT, f"its format is not {FORMAT}")
        names = {part.name for part in fields(cls)}
        _require(stored.keys() == {"format", *names}, f"its keys are not format, {', '.join(sorted(names))}")
        _require(stored["dtype"] in DTYPES, f"dtype is {stored['dtype']!r}")
        files = tuple((str(name), count) for name, count in stored["files"])
        counts = [stored["validation_tokens"], stored["vocab_size"], *(count for _, count in files)]
        _require(all(type(count) is int and count >= 0 for count in counts), "a count is not a number of tokens")
        shards = cls(**{name: stored[name] for name in names} | {"files": files, "sources": tuple(stored["sources"])})
        _require(shards.validation_tokens <= shards.tokens, "validation_tokens is more than there are")
        return shards


def extent(shards: Shards, split: Split) -> tuple[int, int]:
    """(first token, tokens) of a split."""
    training = shards.tokens - shards.validation_tokens
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; give one of {', '.join(get_args(Split))}")
    return (0, training) if split == "training" else (training, shards.validation_tokens)


def require_window(shards: Shards, split: Split, context_size: int) -> None:
    """Refuse a split that is shorter than one window and the token after it."""
    _, count = extent(shards, split)
    if count <= context_size:
        raise UnreadableText(
            f"the {split} split has {count} of the text's {shards.tokens} tokens, and a context_size of "
            f"{context_size} needs {context_size + 1}; give more text, a smaller model.context_size or "
            f"another data.validation_share than {shards.validation_share}"
        )


class ShardWriter:
    """Tokens go in batch by batch; files of `SHARD_TOKENS` tokens come out.

    Attributes:
        tokens: How many are written.
    """

    def __init__(self, folder: Path, vocab_size: int):
        self.dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self.tokens = 0
        self._folder, self._bytes = folder, DTYPES[self.dtype].itemsize

    @property
    def files(self) -> list[tuple[str, int]]:
        """(name, tokens) of each file."""
        return [
            (_name(number), min(SHARD_TOKENS, self.tokens - first))
            for number, first in enumerate(range(0, self.tokens, SHARD_TOKENS))
        ]

    def append(self, tokens: bytes) -> None:
        """Add tokens, as they lie in the files, to the end of the row."""
        rest = memoryview(tokens)
        while len(rest):
            number, place = divmod(self.tokens, SHARD_TOKENS)
            part = rest[: (SHARD_TOKENS - place) * self._bytes]
            with open(self._folder / _name(number), "ab") as file:
                file.write(part)
            self.tokens, rest = self.tokens + len(part) // self._bytes, rest[len(part) :]

    def go_on(self, tokens: int) -> None:
        """Go on behind the first `tokens` tokens of what another writer left here; nothing else is kept."""
        for path in self._folder.glob("*.bin"):
            kept = 0
            if found := NAME.fullmatch(path.name):
                kept = min(max(tokens - int(found[1]) * SHARD_TOKENS, 0), SHARD_TOKENS)
            if kept:
                os.truncate(path, kept * self._bytes)
            else:
                path.unlink()
        self.tokens = tokens

    def written(self, first: int, count: int) -> bytes:
        """What the files hold of tokens `first` to `first + count - 1`; less where they are cut short."""
        parts, end = [], first + count
        while first < end:
            number, place = divmod(first, SHARD_TOKENS)
            part = min(end - first, SHARD_TOKENS - place)
            path, first = self._folder / _name(number), first + part
            if path.is_file():
                with open(path, "rb") as file:
                    file.seek(place * self._bytes)
                    parts.append(file.read(part * self._bytes))
        return b"".join(parts)


class TokenRow:
    """The files of a sidecar, mapped and not read: any stretch of the row, whichever files it lies in."""

    def __init__(self, folder: str | Path, shards: Shards):
        dtype = DTYPES[shards.dtype]
        files = [(name, count) for name, count in shards.files if count]
        self._maps = [np.memmap(Path(folder, name), dtype, "r", shape=(count,)) for name, count in files]
        self._ends = list(accumulate(count for _, count in files))

    def stretch(self, first: int, count: int) -> NDArray[np.int64]:
        """Tokens `first` to `first + count - 1`."""
        parts = []
        shard = bisect_right(self._ends, first)
        while count:
            place = first - (self._ends[shard] - len(self._maps[shard]))
            parts.append(self._maps[shard][place : place + count])
            first, count, shard = first + len(parts[-1]), count - len(parts[-1]), shard + 1
        return np.concatenate(parts).astype(np.int64)


def _name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ValueError(fault)


def _require_file(folder: Path, name: str, size: int) -> None:
    _require(re.fullmatch(r"[\w-][\w.-]*", name) is not None, f"{name!r} is not the plain name of a file")
    path = folder / name
    _require(path.is_file(), f"{name} is missing")
    _require(path.stat().st_size == size, f"{name} has {path.stat().st_size} bytes where {size} belong")
