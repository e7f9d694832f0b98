"""The state of a run on disk: complete, checked, and enough to go on as if nothing had happened.

A checkpoint is a folder `step-00000120` with the model as `GPT2.save` writes it, the optimizer's state, the
state of every random number generator, and, written last, a manifest with the size and SHA-256 of each file.
It is filled under another name and renamed when all of it is on the disk. There is no pointer to the latest
one that could be wrong: it is the newest folder that agrees with its manifest.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..atomic import new_folder, remove_folder
from ..models import weights
from ..models.gpt2 import GPT2
from .distributed import ALONE, World, load_weights
from .optimizer import load_state_tensors, state_tensors

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d{8,})")
MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
RANDOM = "random.safetensors"
FACTS = "training.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what is left and what to do."""


@dataclass
class State:
    """What a checkpoint keeps, all of it updated in place by training and by `restore`.

    Attributes:
        tokens: Digest of the tokens trained on, which must be the same ones after a resume.
        step: Optimizer steps done.
    """

    model: GPT2
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    tokens: str
    step: int = 0


def save(run: str | Path, state: State, *, keep: int, world: World = ALONE) -> Path:
    """Write the checkpoint of `state.step` into the run's folder, then remove all but the newest `keep`.

    Raises:
        CheckpointError: It could not be written, for want of space for example. Older ones are as they were.
    """
    model = _whole(state.model.state_dict())
    optimizer = _whole(state_tensors(state.model, state.optimizer))
    return world.on_first(lambda: _write(run, state, model, optimizer, keep=keep))


def _write(
    run: str | Path, state: State, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], *, keep: int
) -> Path:
    folder = Path(run, FOLDER, f"step-{state.step:08d}")
    try:
        with new_folder(folder) as partial:
            weights.write(partial, state.model.config, model)
            save_file(_contiguous(optimizer), partial / OPTIMIZER)
            save_file(random_states(), partial / RANDOM)
            facts = {"step": state.step, "tokens": state.tokens, "scaler": state.scaler.state_dict()}
            (partial / FACTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")
            files = {file.name: _fingerprint(file) for file in sorted(partial.iterdir())}
            (partial / MANIFEST).write_text(json.dumps(files, indent=2), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        older = steps(run)
        left = f"the checkpoint of step {older[-1]} is intact" if older else "there is no older one"
        raise CheckpointError(
            f"the checkpoint of step {state.step} could not be written to {folder}: {error}; {left}. "
            "Make room on that disk, or correct what the error says, then resume the run"
        ) from error
    for step in steps(run)[:-keep]:
        remove_folder(Path(run, FOLDER, f"step-{step:08d}"))
    return folder


def restore(checkpoint: str | Path, state: State) -> None:
    """Bring `state`, and every random number generator, to where they were when `checkpoint` was saved.

    Raises:
        CheckpointError: It was trained on other tokens than `state` is.
    """
    checkpoint = Path(checkpoint)
    facts = json.loads((checkpoint / FACTS).read_text(encoding="utf-8"))
    if facts["tokens"] != state.tokens:
        raise CheckpointError(
            f"{checkpoint} was trained on other tokens than those in data.folder; put the old ones back, or "
            "start a new run"
        )
    load_weights(state.model, GPT2.load(checkpoint).state_dict())
    load_state_tensors(state.model, state.optimizer, load_file(checkpoint / OPTIMIZER))
    state.scaler.load_state_dict(facts["scaler"])
    restore_random_states(load_file(checkpoint / RANDOM))
    state.step = facts["step"]


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
        checkpoint = Path(run, FOLDER, f"step-{step:08d}")
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


def damage(checkpoint: str | Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was written."""
    checkpoint = Path(checkpoint)
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name, written in files.items():
            if Path(name).name != name:
                return f"the manifest names {name!r}, which is no plain file name"
            size = (checkpoint / name).stat().st_size
            if size != written["bytes"]:
                return f"{name} has {size} bytes where {written['bytes']} were written"
            if _fingerprint(checkpoint / name) != written:
                return f"{name} is not what was written (its SHA-256 differs)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def set_aside(run: str | Path, *, after: int) -> None:
    """Rename the checkpoints of later steps, which are damaged, so that the steps can be saved again."""
    for step in steps(run):
        if step > after:
            path = Path(run, FOLDER, f"step-{step:08d}")
            aside = path.with_name(f"{path.name}.damaged")
            if aside.exists():
                remove_folder(aside)
            path.rename(aside)


def random_states() -> dict[str, Tensor]:
    """The state of the generators of the CPU and of every GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Give the generators the states that `random_states` read; GPUs that are not here are left out."""
    torch.set_rng_state(states["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda:{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda:{index}"], index)


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What all processes hold of each tensor, in one."""
    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors.items()}


def _fingerprint(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
