"""How the tensors of a checkpoint come to disk: by all processes together, in safetensors, whole or not at all.

A storage of torch.distributed.checkpoint, which decides what each process writes and finds it again for any number of
processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from ..atomic import new_folder, sync
from .manifest import fingerprint, write_manifest

MODEL, OPTIMIZER, RANDOM = "model", "optimizer", "random"
PARTS = "parts"  # of the model, before they are put together
SHARDS = "DCP_SHARDING_INFO"  # where HuggingFaceStorageReader looks for the place of a part in its tensor


def kind_of(name: str) -> str:
    """Which kind of file holds the tensor of that name: the model's names are plain, those of others say their kind."""
    kind = name.partition("/")[0]
    return kind if kind in (OPTIMIZER, RANDOM) else MODEL


@dataclass(frozen=True)
class Place:
    """Where one process writes: into a folder that all see, as number `rank` of `ranks`."""

    folder: str
    rank: int
    ranks: int

    def file(self, kind: str) -> Path:
        """The file for tensors of that kind."""
        if self.ranks == 1:
            return Path(self.folder, f"{kind}.safetensors")
        name = f"{kind}-{self.rank + 1:05d}-of-{self.ranks:05d}.safetensors"
        return Path(self.folder, PARTS, name) if kind == MODEL else Path(self.folder, name)


class CheckpointWriter(StorageWriter):
    """Fills a folder that appears when all of it is written, fingerprinted and on disk.

    Every process writes what is its own to write, and says what it wrote. Then the first one puts the model's parts
    together into one file, as `GPT2.load` and transformers read it, which needs memory for the whole model; adds the
    manifest; and renames the folder.

    Args:
        folder: What the checkpoint is to be called.
        complete: Called by the first process with the folder, when all tensors are in it, to write what else it holds.
        after: Called by the first process when the folder has its name.
    """

    def __init__(self, folder: Path, *, complete: Callable[[Path], None], after: Callable[[], None]):
        self._folder, self._complete, self._after = folder, complete, after
        self._unfinished = ExitStack()

    def reset(self, checkpoint_id: object = None) -> None:
        """Nothing: a writer writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool) -> None:
        """Nothing: the first process makes the folder once all plans are known."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder, under another name, and tell every process where."""
        self._partial = self._unfinished.enter_context(new_folder(self._folder))
        if len(plans) > 1:
            (self._partial / PARTS).mkdir()
        return [
            replace(plan, storage_data=Place(str(self._partial), rank, len(plans))) for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's tensors, a file for each kind, and say what the files are."""
        kinds: dict[str, list[WriteItem]] = {}
        for item in plan.items:
            kinds.setdefault(kind_of(item.index.fqn), []).append(item)
        results = []
        with _faults_of_the_disk():
            for kind, items in kinds.items():
                path = plan.storage_data.file(kind)
                _write(path, items, planner, in_parts=plan.storage_data.ranks > 1)
                known = (path.name, fingerprint(path))
                results += [WriteResult(item.index, known[1]["bytes"], known) for item in items]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Of the first process: complete the folder, and give it its name."""
        folder = self._partial
        with _faults_of_the_disk():
            if (folder / PARTS).is_dir():
                _put_together(folder, metadata)
            self._complete(folder)
            for path in folder.iterdir():
                path.chmod(folder.stat().st_mode & 0o666)  # safetensors shuts everyone else out
            write_manifest(folder, dict(result.storage_data for each in results for result in each))
            self._unfinished.close()
        self._after()

    def abandon(self, reason: BaseException) -> None:
        """Remove what was written of a checkpoint that failed."""
        self._unfinished.__exit__(type(reason), reason, reason.__traceback__)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """Every path will do."""
        return True


def _write(path: Path, items: list[WriteItem], planner: SavePlanner, *, in_parts: bool) -> None:
    tensors: dict[str, Tensor] = {}
    offsets: dict[str, dict[str, list[int]]] = {}
    for item in items:
        tensor: Tensor = planner.resolve_data(item)  # type: ignore[bad-assignment]
        if tensor.numel():  # a process may hold an empty part: there are fewer rows than processes
            tensors[item.index.fqn] = tensor.cpu().contiguous()
            offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}  # type: ignore[missing-attribute]
    # One entry: safetensors writes several in any order, and what is the same is to have the same fingerprint.
    save_file(tensors, path, metadata={SHARDS: json.dumps(offsets)} if in_parts else {"format": "pt"})
    sync(path)


def _put_together(folder: Path, metadata: Metadata) -> None:
    whole = {name: room_for(stored) for name, stored in tensors_in(metadata, MODEL).items()}
    dcp.load(whole, storage_reader=HuggingFaceStorageReader(str(folder / PARTS)), no_dist=True)
    save_file(whole, Place(str(folder), 0, 1).file(MODEL), metadata={"format": "pt"})
    shutil.rmtree(folder / PARTS)


def tensors_in(metadata: Metadata, kind: str) -> dict[str, TensorStorageMetadata]:
    """What is stored of that kind, by name."""
    return {
        name: stored
        for name, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata) and kind_of(name) == kind
    }


def room_for(stored: TensorStorageMetadata) -> Tensor:
    """A tensor on the CPU into which a stored one can be read."""
    return torch.empty(stored.size, dtype=stored.properties.dtype)


@contextmanager
def _faults_of_the_disk() -> Iterator[None]:
    """As OSError, which can be sent to other processes."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
