"""The processes of a run: how they find each other, what each has of the work, and the model spread over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..models.gpt2 import GPT2
from .config import RunConfig, TrainConfig
from .meeting import launched_store
from .share import Share

GRACE = 60.0  # seconds by which the watchdog, which says who is waited for, is ahead of a process group, which does not
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """The processes that train together, seen by one of them.

    Attributes:
        device: Where this one's share of the model is computed.
        rank: Which of them this one is, from 0.
        size: How many there are.
        mesh: All of them as [data, context], where those of a row share one sequence; as [data], where nobody shares
            one. None: one that needs no others.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def data(self) -> Share:
        """Which share of a batch's sequences this process takes."""
        return self._share("data")

    @property
    def context(self) -> Share:
        """Which share of each sequence's tokens it takes."""
        return self._share("context")

    @property
    def context_group(self) -> dist.ProcessGroup | None:
        """Those that share this process's sequences; None where nobody does."""
        return self.mesh.get_group("context") if self._has("context") else None  # type: ignore[missing-attribute]

    @property
    def store(self) -> dist.Store | None:
        """What all processes read and write; None where there is no other."""
        return None if self.mesh is None else dist.group.WORLD.get_group_store()  # type: ignore[missing-attribute]

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, which all receive."""
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def on_first(self, act: Callable[[], Result]) -> Result:
        """What the first process finds, which alone acts; all others wait for it, and raise what it raised."""
        if self.size == 1:
            return act()
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = act()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        found, error = told
        if error is not None:
            raise error
        return found

    def _share(self, axis: str) -> Share:
        if not self._has(axis):
            return Share()
        return Share(self.mesh.get_local_rank(axis), self.mesh[axis].size())  # type: ignore[missing-attribute]

    def _has(self, axis: str) -> bool:
        return self.mesh is not None and axis in (self.mesh.mesh_dim_names or ())


ALONE = World(torch.device("cpu"))
"""One process, of whose device nothing is asked."""


@contextmanager
def joined(config: TrainConfig) -> Iterator[World]:
    """The processes that torchrun started, met for the length of the block; or this one alone.

    A process group that is there already is used, and left as it is.

    Raises:
        ValueError: There is no such device here, or the work cannot be shared by so many.
    """
    ours = not (dist.is_available() and dist.is_initialized())
    launched = dist.is_available() and dist.is_torchelastic_launched()
    device = pick_device(config.run, launched=launched or (not ours and dist.get_world_size() > 1))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if ours and not launched and config.parallel.strategy == "ddp":
            _require_shares(config, 1)
            yield World(device)
        else:
            with _grouped(config, device, launched=launched) as world:
                yield world


@contextmanager
def _grouped(config: TrainConfig, device: torch.device, *, launched: bool) -> Iterator[World]:
    """The processes in a group, which is theirs for the length of the block if there was none."""
    ours = not dist.is_initialized()
    if ours:
        timeout = timedelta(seconds=config.parallel.timeout_seconds + GRACE)
        store, rank, size = launched_store(timeout) if launched else (dist.HashStore(), 0, 1)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timeout,
            store=store,
            rank=rank,
            world_size=size,
            device_id=device if device.type == "cuda" else None,
        )
    try:
        _require_cpu_backend(config, device)
        size, context = dist.get_world_size(), config.parallel.context
        _require_shares(config, size)
        axes = {"data": size // context} | ({"context": context} if context > 1 else {})
        mesh = init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
        yield World(device, dist.get_rank(), size, mesh)
    finally:
        if ours:
            dist.destroy_process_group()


def pick_device(config: RunConfig, *, launched: bool = False) -> torch.device:
    """The device that `config` names; auto is a GPU if there is one, else the CPU.

    A GPU without a number is the current one; processes that were launched together take those of their machine in
    order.

    Raises:
        ValueError: There is no such device here, it lacks the precision, or all would share one GPU.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if launched and name.startswith("cuda:"):
        raise ValueError(f"run.device is {name!r}, which all processes would share; give cuda, and each takes its own")
    try:
        if name == "cuda":
            name = f"cuda:{_place_on_machine() if launched else torch.cuda.current_device()}"
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]  # CUDA adds a page of advice
        raise ValueError(f"run.device is {name!r}, which cannot be used here ({reason}); give auto or cpu") from error
    if config.precision == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise ValueError("run.precision is bf16, which this GPU lacks; give fp16 or fp32")
    return device


def parallelized(model: GPT2, world: World, config: TrainConfig) -> nn.Module:
    """What to call instead of the model, which is spread over the processes as `config.parallel` says.

    The gradients of its parameters are the mean over all processes. With fsdp the model itself is sharded in place, so
    make its optimizer after this.
    """
    if config.run.compile:
        for block in model.h:  # one graph for all that are alike, whatever their number
            block.compile()
    if world.mesh is None:
        return model.to(world.device)
    if config.parallel.strategy == "fsdp":
        _shard(model, world, config)
        return model
    device = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model.to(world.device), device_ids=device, gradient_as_bucket_view=True)


def gathered_in(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What processes gather each other's shares of a layer's weights in: GPUs in the precision of the run.

    A CPU gathers all in float32, as its norms take no other weights beside float32; so does a model with indexers,
    which would choose other keys by weights that were rounded.
    """
    low = device.type == "cuda" and config.model.indexer is None
    return DTYPES[config.run.precision] if low else torch.float32


def loss_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """What makes gradients of fp16 large enough to be numbers, and finds those that are none; it lies where they lie.

    PyTorch copies a scale to the gradients' device without waiting, and a CPU reads what is there before it comes.
    """
    place = torch.device("cpu") if config.parallel.offload else device
    scaler = torch.amp.GradScaler(place.type, enabled=config.run.precision == "fp16")
    scaler.scale(torch.zeros((), device=place))  # what it scales first decides where its scale is
    return scaler


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model, which may be spread over processes, weights that every one of them has whole."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)


def give_up_gathered(model: nn.Module) -> None:
    """Keep of sharded weights one's own share alone: after a forward without a backward FSDP2 holds some whole, and
    on the GPU even where shares lie in the CPU's memory."""
    for part in _sharded_parts(model):
        part.reshard()


def local(x: Tensor) -> Tensor:
    """What this process holds of a tensor that may be shared out."""
    return x.to_local() if isinstance(x, DTensor) else x


def _shard(model: GPT2, world: World, config: TrainConfig) -> None:
    """FSDP2, one layer after another: a GPU never holds more than a layer that is not yet shared out.

    What is in no layer is gathered in float32: the residual stream stays float32 too, as under autocast in one process.
    """
    parallel, precision = config.parallel, gathered_in(config, world.device)
    on_gpu = world.device.type == "cuda"
    settings = {
        "mesh": world.mesh if world.context.of == 1 else init_device_mesh(world.device.type, (world.size,)),
        "offload_policy": CPUOffloadPolicy(pin_memory=on_gpu) if parallel.offload else OffloadPolicy(),
    }
    low = MixedPrecisionPolicy()
    if precision != torch.float32:
        low = MixedPrecisionPolicy(precision, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.h:
        fully_shard(block, mp_policy=low, reshard_after_forward=parallel.reshard_after_forward, **settings)
    fully_shard(model, **settings)
    for part in _sharded_parts(model):  # what is gathered first decides for good which weights can learn: here, all
        part.unshard()
        part.reshard()


def _sharded_parts(model: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in model.modules() if isinstance(part, FSDPModule))


def _has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported()


def _place_on_machine() -> int:
    rank = dist.get_rank() if dist.is_initialized() else 0
    return dist.get_node_local_rank(fallback_rank=rank % max(1, torch.cuda.device_count()))


def _require_cpu_backend(config: TrainConfig, device: torch.device) -> None:
    """Offloaded gradients are summed up where they lie."""
    backends = dist.get_backend_config()
    if config.parallel.offload and device.type == "cuda" and "cpu:" not in backends:
        raise ValueError(
            f"parallel.offload is true, and the process group has no backend for the CPU ({backends}); make it with "
            f'init_process_group("cpu:gloo,cuda:nccl"), or leave it to train'
        )


def _require_shares(config: TrainConfig, size: int) -> None:
    context = config.parallel.context
    if size % context:
        raise ValueError(
            f"parallel.context is {context}, which does not divide the number of processes, {size}; start a multiple "
            f"of {context} with torchrun --nproc-per-node, or give another parallel.context"
        )
    data = size // context
    for number, phase in enumerate(config.phases, 1):
        shares = data * phase.gradient_accumulation
        if phase.batch_size < shares:
            raise ValueError(
                f"phase {number} has batch_size={phase.batch_size}, too few sequences for {data} processes with "
                f"gradient_accumulation={phase.gradient_accumulation} pieces each; give at least {shares}, or a larger "
                f"parallel.context"
            )
