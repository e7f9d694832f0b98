"""`gossamer train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from ..config import GPT2Config, SparseAttentionConfig
from ..training.config import TrainConfig
from .command_line import STOPPED_BY_SIGNAL
from .flags import Command, Unprefixed, WrongUsage, parsed


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a GPT-2 on text, into a folder from which it loads and resumes.

    Without any flag: a small sparse GPT-2 on the source of Python's standard library, into runs/gpt2. Ctrl-C
    finishes the step, saves and stops; --resume goes on from there. Started by torchrun (torchrun --nproc-per-node 4
    -m gossamer train ...), the processes train together; the first one speaks for all.
    """

    config: Path | None = None
    """TOML file that the other flags are laid over; the one of a run is FOLDER/config.toml."""
    resume: Path | None = None
    """Folder of a stopped run to go on with."""
    auto_resume: bool = False
    """Go on with the run in run.folder if there is one, and start it if there is none: for jobs that are started again
    with the same flags, as by torchrun --max-restarts."""
    settings: Annotated[TrainConfig, Unprefixed] = field(default_factory=TrainConfig)


def run(arguments: Sequence[str]) -> None:
    """Trains, or goes on training, and prints the result in one line."""
    command = parsed(Train, arguments, default=Train(settings=settings_below(arguments)))
    from ..training.distributed import joined
    from ..training.interruption import Interrupted
    from ..training.loop import train

    resume = "auto" if command.auto_resume else command.resume is not None
    with joined(command.settings) as world:
        try:
            summary = train(command.settings, resume=resume)
        except Interrupted as stopped:
            if world.rank == 0:
                print(f"gossamer: {stopped}", file=sys.stderr)
            raise SystemExit(STOPPED_BY_SIGNAL + stopped.signal) from stopped
    if world.rank == 0:
        print(
            f"{command.settings.run.folder}: {summary.steps:,} steps, "
            f"validation loss {summary.validation_loss:.4f} nats per token, "
            f"{summary.tokens_per_second:,.0f} tokens/s, {summary.peak_memory_bytes / 2**20:,.0f} MiB, "
            f"{summary.parameters:,} parameters"
        )


def settings_below(arguments: Sequence[str]) -> TrainConfig:
    """What the flags are laid over: the file of `--config`, the settings of `--resume`, or the defaults.

    Raises:
        FileNotFoundError: The file, or the run, is not there.
        ValueError: The file cannot be used.
        WrongUsage: Flags contradict each other.
    """
    scan = argparse.ArgumentParser("gossamer train", add_help=False, allow_abbrev=False)
    scan.add_argument("--config")
    scan.add_argument("--resume")
    scan.add_argument("--auto-resume", "--auto_resume", action="store_true")
    scan.add_argument("--model.n-head", "--model.n_head", dest="heads", type=int)
    scan.add_argument("--model.n-embed", "--model.n_embed", dest="width", type=int)
    given, _ = scan.parse_known_args(list(arguments))
    if given.auto_resume and given.resume:
        raise WrongUsage(f"--resume {given.resume} goes on with a run that is there; leave --auto-resume out")
    if given.config and given.resume:
        raise WrongUsage(f"--config {given.config}: a resumed run keeps its own settings; leave --config out")
    if given.resume:
        settings = TrainConfig.from_toml(_config_of(Path(given.resume)))
        return replace(settings, run=replace(settings.run, folder=given.resume))
    settings = TrainConfig.from_toml(given.config) if given.config else TrainConfig()
    return replace(settings, model=_spelled_out(settings.model, given.heads, given.width))


def _config_of(run: Path) -> Path:
    path = run / "config.toml"
    if not path.is_file():
        raise FileNotFoundError(f"--resume {run} holds no run; give the folder of one that was stopped")
    return path


def _spelled_out(model: GPT2Config, heads: int | None, width: int | None) -> GPT2Config:
    """The model with the sparse settings that it would have by default, so that each of them is a flag.

    They depend on the number of heads, which is why that flag, and the one it must divide, are read first.
    """
    heads, width = heads or model.n_head, width or model.n_embed
    try:
        sparse = model.sparse_config or SparseAttentionConfig().for_heads(heads)
        return replace(model, n_head=heads, n_embed=width, sparse_config=sparse)
    except ValueError as error:
        raise WrongUsage(str(error)) from error
