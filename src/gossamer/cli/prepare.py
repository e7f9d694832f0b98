"""`gossamer prepare`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.config import DataConfig, TrainConfig
from .flags import Command, WrongUsage, parsed

if TYPE_CHECKING:
    from ..training.shards import Shards


@dataclass(frozen=True, kw_only=True)
class Prepare(Command):
    """Make the tokens of a text into a folder that runs train on, by several processes and in as many goes as it takes.

    Train on them with gossamer train --data.folder FOLDER. What is done when this is stopped, or killed, is kept
    beside the folder; the same command goes on from there, to the same bytes.
    """

    config: Path | None = None
    """TOML file of a run, that the other flags are laid over: its data, and its model's vocabulary and context."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that make tokens."""
    vocab_size: int = 4096
    """Entries of a BPE that is trained on the text, and the most that any tokenizer may have: model.vocab_size."""
    data: DataConfig = field(default_factory=DataConfig)


def run(arguments: Sequence[str]) -> None:
    """Prepares the tokens, unless they are there, and says in one line what they are."""
    settings = _settings_below(arguments)
    below = Prepare(data=settings.data, vocab_size=settings.model.known_tokens)
    command = parsed(Prepare, arguments, default=below)
    if command.data.folder is None:
        raise WrongUsage("data.folder is not given; give --data.folder, the folder that the tokens go to")
    if command.workers < 1:
        raise WrongUsage(f"workers is {command.workers}; give at least 1")
    from ..training.preparation import tokens_for

    began = time.perf_counter()
    try:
        with _showing() as show:
            shards = tokens_for(
                command.data,
                command.data.folder,
                vocab_size=command.vocab_size,
                context_size=settings.model.context_size if command.config else 1,
                workers=command.workers,
                on_unit=show,
            )
    except (KeyboardInterrupt, SystemExit):
        print("gossamer: stopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        raise
    print(_described(command.data.folder, shards, time.perf_counter() - began))


def _settings_below(arguments: Sequence[str]) -> TrainConfig:
    scan = argparse.ArgumentParser("gossamer prepare", add_help=False, allow_abbrev=False)
    scan.add_argument("--config")
    given, _ = scan.parse_known_args(list(arguments))
    return TrainConfig.from_toml(given.config) if given.config else TrainConfig()


@contextmanager
def _showing() -> Iterator[Callable[[int], None]]:
    """A function that shows how many tokens there are, while the block lasts, where there is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("reading") as status:
        yield lambda tokens: status.update(f"{tokens:,} tokens")


def _described(folder: str, shards: Shards, seconds: float) -> str:
    return (
        f"{folder}: {shards.tokens:,} tokens, {shards.validation_tokens:,} of them for validation, "
        f"of {shards.vocab_size:,} kinds, in {seconds:,.1f} s"
    )
