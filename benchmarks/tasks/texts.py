"""Real text as bytes: the source of Python's standard library, or files that are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from gossamer.training import python_library_sources

BYTES = 256


@dataclass(frozen=True)
class Texts:
    """The bytes to learn from and, from the end of the text, those to be tested with."""

    training: UInt8[Tensor, " M"]
    test: UInt8[Tensor, " L"]

    @classmethod
    def read(cls, paths: Sequence[str], *, most: int, held_out: float = 0.05) -> Texts:
        """The bytes of files and of the files in folders, one after another, up to so many.

        Raises:
            ValueError: There are fewer than 1,000.
        """
        read: list[bytes] = []
        for path in (file for name in paths or python_library_sources(max_bytes=most) for file in _files(Path(name))):
            read.append(path.read_bytes())
            if sum(map(len, read)) >= most:
                break
        text = torch.from_numpy(np.frombuffer(b"\n".join(read)[:most], np.uint8).copy())
        if len(text) < 1000:
            raise ValueError(f"{', '.join(paths)} hold {len(text)} bytes; give more text")
        kept = len(text) - round(held_out * len(text))
        return cls(text[:kept], text[kept:])

    def batch(self, rows: int, length: int, draws: torch.Generator) -> Int64[Tensor, "B N"]:
        """Stretches of the training text, each with the byte after its last."""
        starts = torch.randint(len(self.training) - length, (rows,), generator=draws)
        return torch.stack([self.training[start : start + length + 1] for start in starts.tolist()]).long()

    def tests(self, rows: int, length: int) -> Int64[Tensor, "B N"]:
        """As many stretches of the test text, spread over it, always the same."""
        starts = np.linspace(0, len(self.test) - length - 1, rows).astype(int)
        return torch.stack([self.test[start : start + length + 1] for start in starts]).long()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*.py") if file.is_file()) if path.is_dir() else [path]
