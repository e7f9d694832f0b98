"""One long row of tokens, kept as flat binary files with a JSON sidecar."""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SIDECAR = "tokens.json"
SIDECAR_BYTES = 2**24
FORMAT = "gossamer-tokens-1"
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
SHARD_TOKENS = 2**27


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


class ShardWriter:
    """Tokens go in batch by batch; files of `SHARD_TOKENS` tokens come out."""

    def __init__(self, folder: Path, vocab_size: int):
        self.dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self.files: list[tuple[str, int]] = []
        self._folder = folder

    def append(self, tokens: Iterable[int]) -> None:
        """Add `tokens` to the end of the row."""
        row = np.fromiter(tokens, dtype=DTYPES[self.dtype])
        while len(row):
            if not self.files or self.files[-1][1] == SHARD_TOKENS:
                self.files.append((f"tokens-{len(self.files):05d}.bin", 0))
            name, count = self.files[-1]
            part, row = np.split(row, [SHARD_TOKENS - count])
            with open(self._folder / name, "ab") as file:
                file.write(part.tobytes())
            self.files[-1] = (name, count + len(part))


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


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ValueError(fault)


def _require_file(folder: Path, name: str, size: int) -> None:
    _require(re.fullmatch(r"[\w-][\w.-]*", name) is not None, f"{name!r} is not the plain name of a file")
    path = folder / name
    _require(path.is_file(), f"{name} is missing")
    _require(path.stat().st_size == size, f"{name} has {path.stat().st_size} bytes where {size} belong")
