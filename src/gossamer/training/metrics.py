"""What happened in each step, one JSON object a line, and the run in a few numbers."""

import errno
import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Self

from ..atomic import write_file

FILE = "metrics.jsonl"
WARMUP_ROWS = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """A run in a few numbers.

    Attributes:
        tokens_per_second: Median over the steps, the first few left out where there are enough.
        peak_memory_bytes: Most memory that model, gradients, optimizer and activations needed at one time.
        validation_loss: The last one, in nats per token.
        parameters: Numbers in the model; the tied head counts once.
        steps: Optimizer steps done.
        context: Tokens in a sequence.
    """

    tokens_per_second: float
    peak_memory_bytes: int
    validation_loss: float
    parameters: int
    steps: int
    context: int

    @classmethod
    def of(cls, rows: Iterable[Row], *, parameters: int, context: int) -> Self:
        """The summary of a run whose metrics are `rows`."""
        rows = list(rows)
        settled = rows[WARMUP_ROWS:] if len(rows) > 2 * WARMUP_ROWS else rows
        return cls(
            tokens_per_second=statistics.median(row["tokens_per_second"] for row in settled),
            peak_memory_bytes=max(row["peak_memory_bytes"] for row in rows),
            validation_loss=[row["validation_loss"] for row in rows if "validation_loss" in row][-1],
            parameters=parameters,
            steps=rows[-1]["step"],
            context=context,
        )


@contextmanager
def metrics_log(path: Path, *, step: int) -> Iterator[Callable[[Row], None]]:
    """A function that adds a row to the file, at once visible to whoever reads along.

    The file holds each step once, whatever happened before: rows after `step` belong to steps that will be
    done again, and are dropped first.
    """
    if path.exists():
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_file(path, "".join(map(_line, kept)).encode())
    with open(path, "ab", buffering=0) as file:
        yield partial(_append, file)


def read_metrics(path: str | Path) -> list[Row]:
    """The rows of a metrics file; a last line that was cut short is left out.

    Raises:
        ValueError: Another line is not a JSON object.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}); remove it") from error
    return rows


def _append(file: FileIO, row: Row) -> None:
    line = _line(row).encode()
    try:
        if file.write(line) != len(line):  # what fits is written without an error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        fault = f"{error.strerror}: no room for the metrics of step {row['step']}; make some, then resume"
        raise OSError(error.errno, fault, file.name) from error


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
