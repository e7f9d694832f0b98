"""A checkpoint of several processes is one: whole or not there, and read by any number of them, however they share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gossamer.config import GPT2Config, IndexerConfig
from gossamer.models.gpt2 import GPT2
from gossamer.training import storage
from gossamer.training.checkpoint import Saver, State, restore
from gossamer.training.checkpoint_folders import CheckpointError, latest, steps
from gossamer.training.config import OptimizerConfig, ParallelConfig, PhaseConfig, RunConfig
from gossamer.training.loop import train
from gossamer.training.manifest import damage
from gossamer.training.metrics import Row, read_metrics
from gossamer.training.optimizer import adamw, state_tensors
from tests.distributed.launch import on_gpus, run_ranks
from tests.training.kill_many import tiny

SEED = 11
WORLDS = [(4, True), (3, True), (2, True), (2, False), (1, False)]
"""Numbers of processes, and whether each holds a part of the weights (FSDP2) or all of them."""


ALONE = (1, {})
JOURNEYS = {
    "alone": [ALONE],
    "fewer": [(4, {"strategy": "ddp"}), (2, {"strategy": "ddp"}), ALONE],
    "more": [ALONE, (2, {"strategy": "ddp"}), (4, {"strategy": "ddp", "context": 2})],
    "shared otherwise": [(2, {"strategy": "fsdp"}), (2, {"strategy": "ddp"}), (4, {"strategy": "fsdp"})],
    "back": [(4, {"strategy": "fsdp", "context": 2}), (2, {"strategy": "fsdp", "offload": True}), ALONE],
    "alone, in stages": [ALONE],
    "shared, in stages": [(2, {"strategy": "fsdp"}), ALONE, (2, {"strategy": "ddp"})],
    "kept shared, in stages": [(2, {"strategy": "fsdp"}), (2, {"strategy": "fsdp"}), (3, {"strategy": "fsdp"})],
}
"""Runs by the numbers of processes that train them one after another, and how these share."""
EPSILON = torch.finfo(torch.float64).eps
STEPS, STOPS = 11, (5, 9)
"""A run is killed twice, a step behind a checkpoint that followed an evaluation, and where a stage may end."""
INDEXER = IndexerConfig(index_n_heads=2, index_head_dim=8, index_topk=4, qk_rope_head_dim=4)
STAGES = tuple(PhaseConfig(n, stage=s, learning_rate=3e-3) for s, n in (("dense", 4), ("warm_up", 4), ("sparse", 3)))


class Processes:
    """The processes of a launch, of which some may go on as a smaller world.

    Args:
        folder: Where they meet.
    """

    def __init__(self, folder: Path):
        self._folder, self._rank, self._worlds = folder, dist.get_rank(), 0
        dist.destroy_process_group()

    @contextmanager
    def first(self, size: int) -> Iterator[bool]:
        """Within the block the first so many are all there are; whether this one is among them."""
        self._worlds += 1
        if size > 1 and self._rank < size:
            store = dist.FileStore(str(self._folder / f"meeting{self._worlds}"), size)
            dist.init_process_group("gloo", store=store, rank=self._rank, world_size=size)
        yield self._rank < size
        if dist.is_initialized():
            dist.destroy_process_group()


def state(*, sharded: bool, seed: int = 0, device: str = "cpu") -> State:
    """A model so narrow that of four processes some hold nothing of a tensor."""
    torch.manual_seed(seed)
    model = GPT2(GPT2Config(vocab_size=11, context_size=3, n_layer=1, n_head=1, n_embed=2)).to(device)
    if sharded:
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        fully_shard(model.h[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    scaler = torch.amp.GradScaler(device, enabled=True)
    return State(model, adamw(model, OptimizerConfig()), scaler, tokens="digest", seed=SEED)


def step(state: State) -> None:
    """A step with the same gradient in every world."""
    generator = torch.Generator().manual_seed(state.step)
    for parameter in state.model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        if isinstance(parameter, DTensor):
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = gradient
    state.optimizer.step()
    state.step += 1


def everything(state: State) -> dict[str, Tensor]:
    """Every weight, and what the optimizer has of it."""
    tensors = dict(state.model.named_parameters()) | state_tensors(state.model, state.optimizer)
    return {name: (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone() for name, x in tensors.items()}


def expected(run: Path) -> Path:
    return run / "expected.safetensors"


def save(run: Path, *, sharded: bool) -> dict[str, Any]:
    """Save twice, the second time while the state is at step 2, and say what is drawn then."""
    saved, rank = state(sharded=sharded), dist.get_rank() if dist.is_initialized() else 0
    step(saved)
    torch.manual_seed(rank)
    with Saver(run, saved, keep=2, background=True) as saver:
        saver.save()
        step(saved)
        saver.save()
        whole = everything(saved)
        step(saved)  # while the second is written
    if rank == 0:
        save_file(whole, expected(run))
    return {"steps": steps(run), "drew": torch.rand(1).item(), "files": sorted(os.listdir(latest(run)))}


def read(run: Path, *, sharded: bool) -> dict[str, Any]:
    """Read into a fresh state what `save` wrote, and say what differs, and what is drawn then."""
    fresh = state(sharded=sharded, seed=5)
    restore(latest(run), fresh)
    drew, whole = torch.rand(1).item(), everything(fresh)
    step(fresh)
    stored = load_file(expected(run))
    differing = [name for name in whole.keys() | stored.keys() if not torch.equal(whole[name], stored[name])]
    return {"step": fresh.step, "differing": differing, "drew": drew}


def fill_disk_of_the_second(run: Path) -> dict[str, Any]:
    """Save in the background while one process finds no room, then when there is some again."""

    def full(*arguments: Any, **settings: Any) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    saved = state(sharded=True)
    step(saved)
    with Saver(run, saved, keep=1, background=True) as saver:
        saver.save()
        saver.wait()
        step(saved)
        with patch.object(storage, "save_file", full if dist.get_rank() == 1 else storage.save_file):
            saver.save()
            step(saved)
            try:
                saver.wait()
                said = ""
            except CheckpointError as error:
                said = str(error)
        dist.barrier()  # the first one cleans up
        left = sorted(os.listdir(run / "checkpoints"))
        fault = damage(latest(run))
        dist.barrier()
        saver.save()
    return {"said": said, "left": left, "fault": fault, "then": steps(run)}


class Killed(Exception):
    """Stands for the power going out: nothing is saved."""


def travel(folder: Path, name: str, processes: Processes) -> None:
    """Train a run in one world after another, in float64."""
    plain = tiny(folder / name, folder / "text.txt", seed=0)
    model, run = replace(plain.model, dropout=0.0), replace(plain.run, checkpoint_every=2, evaluate_every=4)
    if "stages" in name:
        model = replace(model, n_layer=2, use_sparse_attention=False, sparse_config=None, indexer=INDEXER)
        plain = replace(plain, model=model, run=replace(run, steps=RunConfig.steps), phase=STAGES)
    else:
        plain = replace(plain, model=model, run=replace(run, steps=STEPS))
    torch.set_default_dtype(torch.float64)
    for (size, parallel), stop in zip_longest(JOURNEYS[name], STOPS[: len(JOURNEYS[name]) - 1]):
        config = replace(plain, parallel=ParallelConfig(**parallel))

        def kill(row: Row, stop: int | None = stop) -> None:
            if row["step"] == stop:
                raise Killed

        with processes.first(size) as present, suppress(Killed):
            if present:
                train(config, resume="auto", on_step=kill)
    torch.set_default_dtype(torch.float32)


def all_of_it(folder: Path) -> dict[Any, dict[str, Any]]:
    """What each world found, by what it did."""
    processes, found = Processes(folder), {}
    for writer in WORLDS:
        size, sharded = writer
        run = folder / f"run-{size}-{sharded}"
        with processes.first(size) as present:
            if present:
                found[writer] = save(run, sharded=sharded)
        for reader in WORLDS:
            size, sharded = reader
            with processes.first(size) as present:
                if present:
                    found[writer, reader] = read(run, sharded=sharded)
    with processes.first(2) as present:
        if present:
            found["full"] = fill_disk_of_the_second(folder / "full")
    for name in JOURNEYS:
        travel(folder, name, processes)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of it happens."""
    folder = tmp_path_factory.mktemp("worlds")
    (folder / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(120)))
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[Any, dict[str, Any]]]:
    """What each of four processes found."""
    return run_ranks(all_of_it, 4, folder)


@pytest.mark.parametrize("writer", WORLDS)
@pytest.mark.parametrize("reader", WORLDS)
def test_any_number_of_processes_reads_what_any_number_wrote(found, writer: tuple, reader: tuple) -> None:
    for mine in found[: reader[0]]:
        assert mine[writer, reader]["step"] == 3
        assert mine[writer, reader]["differing"] == []


@pytest.mark.parametrize("writer", WORLDS)
@pytest.mark.parametrize("reader", WORLDS)
def test_each_process_draws_on_where_it_was_and_new_ones_by_themselves(found, writer: tuple, reader: tuple) -> None:
    draws = [mine[writer, reader]["drew"] for mine in found[: reader[0]]]
    known = [mine[writer]["drew"] for mine in found[: writer[0]]]
    both = min(len(draws), len(known))
    assert draws[:both] == known[:both]
    assert len({*draws, *known}) == max(len(draws), len(known))


@pytest.mark.parametrize("writer", WORLDS)
def test_each_process_writes_its_own_files_and_the_model_is_one(found, writer: tuple) -> None:
    size, files = writer[0], found[0][writer]["files"]
    endings = [f"-{rank + 1:05d}-of-{size:05d}" for rank in range(size)] if size > 1 else [""]
    own = [f"{kind}{ending}.safetensors" for kind in ("optimizer", "random") for ending in endings]
    assert files == sorted([*own, "model.safetensors", "config.json", "training.json", "manifest.json"])
    assert found[0][writer]["steps"] == [1, 2]


def test_a_full_disk_of_one_process_is_told_to_all_and_leaves_the_last_checkpoint_intact(found) -> None:
    for mine in found[:2]:
        told = mine["full"]
        assert re.search(r"step 2 could not be written .*: process 1: .*No space left.*step 1 is intact", told["said"])
        assert told["left"] == ["step-00000001"]
        assert told["fault"] is None
        assert told["then"] == [3]


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("name", [name for name in JOURNEYS if not name.startswith("alone")])
def test_a_run_goes_on_in_any_number_of_processes_as_if_it_had_never_stopped(folder: Path, name: str) -> None:
    """In float64, losses and gradients differ by the order in which they were summed, and by nothing else.

    The loss of indexers is the difference of nearly equal numbers, and has as many digits less.
    """
    straight = "alone, in stages" if "stages" in name else "alone"
    one, other = (read_metrics(folder / run / "metrics.jsonl") for run in (straight, name))
    assert [row["step"] for row in other] == [row["step"] for row in one] == list(range(1, STEPS + 1))
    for key in ("loss", "gradient_norm", "validation_loss", "indexer_loss", "indexer_gradient_norm", "recall"):
        expected, got = ([row[key] for row in rows if row.get(key) is not None] for rows in (one, other))
        assert got == pytest.approx(expected, rel=64 * EPSILON, abs=64 * EPSILON)


def on_the_gpu(folder: Path) -> dict[str, Any]:
    """Save a sharded model from the GPUs while it trains on, and read it into another."""
    saved = state(sharded=True, device="cuda")
    step(saved)
    torch.cuda.manual_seed(dist.get_rank())
    with Saver(folder / "run", saved, keep=1, background=True) as saver:
        saver.save()
        whole = everything(saved)
        for _ in range(5):
            step(saved)
    drew = torch.rand(1, device="cuda").item()
    fresh = state(sharded=True, seed=5, device="cuda")
    restore(latest(folder / "run"), fresh)
    read = everything(fresh)
    differing = [name for name in whole if not torch.equal(whole[name], read[name])]
    again = torch.rand(1, device="cuda").item()
    return {"differing": differing, "drew": (drew, again), "names": sorted(read) == sorted(whole), "step": fresh.step}


@pytest.mark.gpu
@pytest.mark.skipif(not on_gpus(2), reason="needs two GPUs")
def test_gpus_train_on_while_their_state_is_written_and_draw_on_where_they_were(tmp_path: Path) -> None:
    found = run_ranks(on_the_gpu, 2, tmp_path)
    for mine in found:
        assert (mine["differing"], mine["names"], mine["step"]) == ([], True, 1)
        assert mine["drew"][0] == mine["drew"][1]
    assert found[0]["drew"] != found[1]["drew"]
