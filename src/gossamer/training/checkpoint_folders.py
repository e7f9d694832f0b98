"""The checkpoints that a run has on disk, and the newest of them that can be trusted."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from ..atomic import remove_folder
from .manifest import damage

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what is left and what to do."""


def latest(run: str | Path) -> Path:
    """The newest checkpoint of a run that is whole; a damaged one is passed over with a warning.

    Raises:
        FileNotFoundError: The run has no checkpoint.
        CheckpointError: It has, and all are damaged; the message says how.
    """
    found = steps(run)
    if not found:
        raise FileNotFoundError(f"{run} holds no checkpoint; train it first, or give a run's folder")
    faults = []
    for step in reversed(found):
        checkpoint = folder_of(run, step)
        fault = damage(checkpoint)
        if fault is None:
            return checkpoint
        log.warning("checkpoint %s is damaged and passed over: %s", checkpoint, fault)
        faults.append(f"{checkpoint.name}: {fault}")
    raise CheckpointError(
        f"every checkpoint of {run} is damaged ({'; '.join(faults)}); bring one back from a copy, or train "
        "again in a new folder"
    )


def steps(run: str | Path) -> list[int]:
    """Steps of which the run has a checkpoint, whole or damaged, in order."""
    names = (NAME.fullmatch(path.name) for path in Path(run, FOLDER).glob("step-*") if path.is_dir())
    return sorted(int(name[1]) for name in names if name)


def folder_of(run: str | Path, step: int) -> Path:
    """Where the run has its checkpoint of that step, if it has one."""
    return Path(run, FOLDER, f"step-{step:08d}")


def settle(run: str | Path, *, at: int) -> None:
    """Make a resumed run ready to save again: only the process that holds the run's lock may do so.

    Checkpoints of steps after `at`, which are damaged, are renamed, and what killed processes left half written, or
    half removed, on whatever machine, is removed.
    """
    for left in Path(run, FOLDER).glob(".*.partial"):
        shutil.rmtree(left)
    for step in steps(run):
        if step > at:
            path = folder_of(run, step)
            aside = path.with_name(f"{path.name}.damaged")
            if aside.exists():
                remove_folder(aside)
            path.rename(aside)
