"""The state of a run on disk: complete, checked, and enough to go on as if nothing had happened.

A checkpoint is a folder `step-00000120` with the model as `GPT2.save` writes it, the optimizer's state and the states
of all random number generators, as every process holds them, what else training remembers, and a manifest with the size
and SHA-256 of each file. It is filled under another name and renamed when all of it is on the disk. There is no pointer
to the latest one that could be wrong: it is the newest folder that agrees with its manifest.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.stateful import Stateful

from ..atomic import remove_folder
from ..models import config_file
from ..models.gpt2 import GPT2
from ..models.weights import as_stored
from .checkpoint_folders import CheckpointError, folder_of, steps
from .optimizer import load_state_tensors, state_tensors
from .random_states import random_states, restore_random_states, seed_random_states
from .storage import OPTIMIZER, RANDOM, CheckpointWriter, room_for, tensors_in

log = logging.getLogger(__name__)

FACTS = "training.json"
MOST_NUMBERS = 2**16  # of a generator's state; the largest has some thousands
PATIENCE = timedelta(hours=2)  # of the processes for the first one, which puts the model together


@dataclass
class State:
    """What a checkpoint keeps, all of it updated in place by training and by `restore`.

    Attributes:
        tokens: Digest of the tokens trained on, which must be the same ones after a resume.
        step: Optimizer steps done.
        seed: Decides the random states of processes that the run did not have when it was saved.
        memories: What else training remembers, by name; each has `state_dict()` in values that JSON can hold.
    """

    model: GPT2
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    tokens: str
    step: int = 0
    seed: int = 0
    memories: dict[str, Stateful] = field(default_factory=dict)


class Saver:
    """Writes the checkpoints of a run, one at a time, while training goes on; all processes of the run save together.

    Leaving the block waits for the one that is being written.

    Args:
        keep: How many of the newest stay.
        keep_every: Those of every so many steps stay as well; 0 is none.
        background: Copy the state into the CPU's memory and write it while training goes on; else `save` writes it.
    """

    def __init__(self, run: str | Path, state: State, *, keep: int, keep_every: int = 0, background: bool = False):
        self._run, self._state = run, state
        self._keep, self._keep_every, self._background = keep, keep_every, background
        self._group: dist.ProcessGroup | None = None
        self._written: Future | None = None
        self._quiet = warnings.catch_warnings()

    def __enter__(self) -> Self:
        # A group of its own: what is written in the background must not come between the messages of training.
        if dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)  # type: ignore[bad-assignment]
        self._quiet.__enter__()
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is meant
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self.wait()
        except Exception as fault:
            if error is None:
                raise
            log.error("%s", fault)  # besides what ended the run
        finally:
            self._quiet.__exit__(kind, error, trace)
            if self._group is not None:
                dist.destroy_process_group(self._group)

    def save(self) -> None:
        """Write the checkpoint of the step that the state is at; it is there when `wait` returns.

        Raises:
            CheckpointError: It, or the one before, could not be written, for want of space for example. Older ones
                are as they were.
        """
        self.wait()
        state, tensors = self._state, _tensors(self._state)
        self._step, self._folder = state.step, folder_of(self._run, state.step)
        self._writer = CheckpointWriter(self._folder, complete=_facts_writer(state), after=self._remove_old_ones)
        with self._explaining():
            if self._background:
                self._written = dcp.async_save(tensors, storage_writer=self._writer, process_group=self._group)  # type: ignore[bad-assignment]
            else:
                dcp.save(tensors, storage_writer=self._writer, process_group=self._group)

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            CheckpointError: What was being written could not be.
        """
        written, self._written = self._written, None
        if written is not None:
            with self._explaining():
                written.result()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (Exception, CheckpointException) as error:
            self._writer.abandon(error)
            if (interruption := _interruption(error)) is not None:
                raise interruption from None
            older = steps(self._run)
            left = f"the checkpoint of step {older[-1]} is intact" if older else "there is no older one"
            raise CheckpointError(
                f"the checkpoint of step {self._step} could not be written to {self._folder}: {_reason(error)}; "
                f"{left}. Make room on that disk, or correct what the error says, then resume the run"
            ) from error

    def _remove_old_ones(self) -> None:
        for step in steps(self._run)[: -self._keep]:
            if self._keep_every and step % self._keep_every == 0:
                continue
            try:
                remove_folder(folder_of(self._run, step))
            except OSError as error:
                log.warning("the old checkpoint of step %s could not be removed: %s", step, error)


def restore(checkpoint: str | Path, state: State) -> None:
    """Bring `state`, and every random number generator, to where they were when `checkpoint` was saved.

    All processes of the run call it together. They may be more or fewer than those that saved it, and hold the model
    and the optimizer in other parts: each reads what it holds. A process, or a GPU, that the run did not have before
    draws from random states of its own, which follow from the seed, the step and the rank.

    Raises:
        CheckpointError: It was trained on other tokens than `state` is, or is of another model.
    """
    checkpoint = Path(checkpoint)
    facts = json.loads((checkpoint / FACTS).read_text(encoding="utf-8"))
    if facts["tokens"] != state.tokens:
        raise CheckpointError(
            f"{checkpoint} was trained on other tokens than those in data.folder; put the old ones back, or "
            "start a new run"
        )
    optimizer, random = _read(checkpoint, state)
    load_state_tensors(state.model, state.optimizer, optimizer)
    state.scaler.load_state_dict(facts["scaler"])
    for name, memory in state.memories.items():
        if name in facts["memories"]:
            memory.load_state_dict(facts["memories"][name])
    state.step = facts["step"]
    seed_random_states(state.seed, step=state.step, rank=_rank())  # for generators that it did not have
    own = {name.removeprefix(_own("")): tensor for name, tensor in random.items() if name.startswith(_own(""))}
    if own:
        restore_random_states(own)


def _tensors(state: State) -> dict[str, Tensor]:
    """All that is saved as tensors: the model's under the names of its file, others with their kind before the name.

    In one order always, in which they are also given out to be written: what is the same has the same files.
    """
    # First, as it brings weights home that FSDP2 gathered for an evaluation: the optimizer knows them as they are then.
    model = as_stored(state.model.state_dict())
    optimizer = {_of_optimizer(name): tensor for name, tensor in state_tensors(state.model, state.optimizer).items()}
    random = {_own(name): tensor for name, tensor in random_states().items()}
    return dict(sorted({**model, **optimizer, **random}.items()))


def _read(checkpoint: Path, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the model into its place; returned are the optimizer's tensors and the random states of all processes."""
    reader = HuggingFaceStorageReader(str(checkpoint))
    metadata, model = reader.read_metadata(), as_stored(state.model.state_dict())
    parameters = dict(state.model.named_parameters())
    optimizer = {}
    for name, stored in tensors_in(metadata, OPTIMIZER).items():
        parameter = parameters.get(name.split("/")[1])
        if parameter is not None and parameter.shape == stored.size:  # a moment, shared out as its parameter is
            optimizer[name] = torch.empty_like(parameter)
        else:
            optimizer[name] = _small(name, stored)
    random = {name: _small(name, stored) for name, stored in tensors_in(metadata, RANDOM).items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is meant
            dcp.load({**model, **optimizer, **random}, storage_reader=reader)
    except CheckpointException as error:
        raise CheckpointError(
            f"{checkpoint} is no checkpoint of this run: {_reason(error)}; start a new run"
        ) from error
    return {name.removeprefix(_of_optimizer("")): tensor for name, tensor in optimizer.items()}, random


def _small(name: str, stored: TensorStorageMetadata) -> Tensor:
    """Room for a count or a generator's state; before anything grows with a number that was read from a file."""
    if stored.size.numel() > MOST_NUMBERS:
        raise CheckpointError(
            f"{name} has shape {list(stored.size)}, which is not of this run's model; start a new run"
        )
    return room_for(stored)


def _facts_writer(state: State) -> Callable[[Path], None]:
    """What writes the rest of the state as it is now, whatever it is when it is called."""
    config = state.model.config
    facts = json.dumps(
        {
            "step": state.step,
            "tokens": state.tokens,
            "scaler": state.scaler.state_dict(),
            "memories": {name: memory.state_dict() for name, memory in state.memories.items()},
        },
        indent=2,
    )

    def write(folder: Path) -> None:
        config_file.write(folder / config_file.FILE, config)
        (folder / FACTS).write_text(facts, encoding="utf-8")

    return write


def _reason(error: BaseException) -> str:
    if not isinstance(error, CheckpointException):
        return str(error)
    faults = {rank: fault for rank, (fault, _) in error.failures.items()}
    if not dist.is_initialized():
        return str(faults[0])
    return "; ".join(f"process {rank}: {fault}" for rank, fault in faults.items())


def _interruption(error: BaseException) -> BaseException | None:
    """What a person or the system did to this process while it saved, which is no fault."""
    faults = error.failures.values() if isinstance(error, CheckpointException) else ()
    return next((fault for fault, _ in faults if not isinstance(fault, Exception)), None)


def _of_optimizer(name: str) -> str:
    return f"{OPTIMIZER}/{name}"


def _own(name: str) -> str:
    return f"{RANDOM}/{_rank()}/{name}"


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
