"""However a run is spread over processes, its losses, gradients and their length are those of one process.

All begin with one seed checkpoint. The judge is one process in float64: in float64 the others agree with it to
rounding, and in a lower precision they are not further from it than twice what one process is.

Where there are as many GPUs as processes, each has one of them, and they meet through NCCL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.models.gpt2 import GPT2
from gossamer.patterns import Causal, RandomBlocks, Window
from gossamer.training import run_folder
from gossamer.training.config import DataConfig, Packing, ParallelConfig, RunConfig, TrainConfig
from gossamer.training.distributed import DTYPES, World, joined, local, pick_device
from gossamer.training.share import Share
from gossamer.training.trainer import Trainer
from tests.distributed.launch import on_gpus, run_ranks

CONTEXT, STEPS = 30, 2
SHAPE = GPT2Config(vocab_size=257, context_size=CONTEXT, n_layer=2, n_head=4, n_embed=24)
HEADS = SparseAttentionConfig(local_heads=2, global_heads=2, window_size=6, min_window_size=1)
MODELS = {
    "band": replace(SHAPE, windows=(5, 11)),
    "columns": replace(SHAPE, use_sparse_attention=True, sparse_config=HEADS),
    "rows": replace(SHAPE, use_sparse_attention=True, sparse_config=replace(HEADS, global_rows=True)),
    "blocks": replace(SHAPE, windows=(1, 1)),
}
BLOCKS = Causal() & (Window(3) | RandomBlocks(block=4, count=1, seed=3))
"""What the layers of the model "blocks" see instead of their windows: no model has such a pattern of its own."""
DDP, FSDP = {"strategy": "ddp"}, {"strategy": "fsdp"}


class Measured(NamedTuple):
    """What two steps gave; the gradients are those that weights are changed by, which are shortened."""

    losses: list[float]
    norms: list[float]
    gradients: list[dict[str, np.ndarray]]
    validation: float


@dataclass(frozen=True)
class Case:
    """A way to spread a run: `parallel` and `run` are fields of its configuration."""

    model: str
    parallel: tuple[tuple[str, Any], ...] = ()
    run: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float64
    packing: Packing = "none"

    def __str__(self) -> str:
        return " ".join([self.model, *(f"{name}={value}" for name, value in (*self.parallel, *self.run))])

    @property
    def alone(self) -> Case:
        """In one process."""
        return replace(self, parallel=())

    @property
    def exact(self) -> Case:
        """The same in float64."""
        run = tuple(pair for pair in self.run if pair[0] != "precision")
        return replace(self.alone, run=run, dtype=torch.float64)


def case(model: str, parallel: Mapping[str, Any], dtype: torch.dtype = torch.float64, **run: Any) -> Case:
    return Case(model, tuple(parallel.items()), tuple(run.items()), dtype)


def everywhere(world: int) -> list[Case]:
    """Every way to spread a run over `world` processes; what their number cannot change, over two alone."""
    contexts = [{"context": 2}, {**FSDP, "context": 2}, *([{"context": 4}] if world == 4 else [])]
    return [
        *(case(model, spread, batch_size=world + 1) for model in MODELS for spread in (DDP, FSDP)),
        *(case(model, spread) for model in MODELS for spread in contexts),
        *(replace(case("columns", spread), packing="documents") for spread in (DDP, *contexts)),
        case("columns", {"context": 2, "exchange": "heads"}),
        case("columns", {**FSDP, "context": 2}, gradient_accumulation=2, batch_size=5),
        *(OVER_TWO if world == 2 else ()),
    ]


OVER_TWO = [
    case("columns", {**FSDP, "reshard_after_forward": False}),
    case("columns", {**FSDP, "offload": True}),
    *(case("columns", spread, gradient_accumulation=2, batch_size=5) for spread in (DDP, FSDP)),
    *(
        case("band", spread, activation_checkpointing=kept)
        for kept in ("full", "selective")
        for spread in (DDP, FSDP, {"context": 2})
    ),
    *(
        case("columns", spread, torch.float32, precision=precision)
        for precision in ("fp32", "bf16", "fp16")
        for spread in (DDP, FSDP, {**FSDP, "offload": True}, {"context": 2})
    ),
]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens and, of each model, a seed checkpoint."""
    folder = tmp_path_factory.mktemp("seeds")
    texts = folder / "texts"
    texts.mkdir()
    for tens in range(12):  # each is a document
        lines = (f"{n} times {n} is {n * n}.\n" for n in range(10 * tens, 10 * tens + 10 - tens % 5))
        (texts / f"{tens:02}.txt").write_text("".join(lines))
    for name, shape in MODELS.items():
        torch.manual_seed(1)
        GPT2(shape).save(folder / name)
    run_folder.start(configured(Case("columns"), folder))
    return folder


@pytest.fixture(scope="module")
def alone(seeds: Path) -> Callable[[Case], Measured]:
    """What one process measures."""
    cases = [*everywhere(2), *everywhere(4)]
    wanted = list(dict.fromkeys(c for case in cases for c in (case.alone, case.exact)))
    found = dict(zip(wanted, run_ranks(measured, 1, wanted, seeds)[0], strict=True))
    return found.__getitem__


@pytest.mark.parametrize("world", [2, 4])
def test_every_way_to_spread_a_run_gives_what_one_process_gives(seeds: Path, alone, world: int) -> None:
    cases = everywhere(world)
    for each, found in zip(cases, zip(*run_ranks(measured, world, cases, seeds), strict=True), strict=True):
        for of_rank in found:
            require_equal(of_rank, alone(each.alone), alone(each.exact), each, f"{each} over {world}")


FAULTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "the norm of one shard only": (Trainer, "_clipped", lambda self, learners: _length_of_own(learners)),
    "the loss of one share only": (World, "summed", lambda self, numbers: [self.size * number for number in numbers]),
    "sequences that two take": (Share, "among", lambda self, count: range(self.place, count)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(seeds: Path, alone, fault: str) -> None:
    each = case("columns", FSDP, batch_size=3)
    for of_rank in zip(*run_ranks(measured_with, 2, fault, [each], seeds), strict=True):
        with pytest.raises(AssertionError, match="columns strategy=fsdp batch_size=3"):
            require_equal(of_rank[0], alone(each.alone), alone(each.exact), each, str(each))


def measured_with(fault: str, cases: list[Case], folder: Path) -> list[Measured]:
    owner, name, faulty = FAULTS[fault]
    with mock.patch.object(owner, name, faulty):
        return measured(cases, folder)


def _length_of_own(parameters: list[torch.nn.Parameter]) -> float:
    gradients = [local(parameter.grad) for parameter in parameters]  # type: ignore[bad-argument-type]
    return torch.nn.utils.get_total_norm(gradients).item()


def require_equal(found: Measured, one: Measured, exact: Measured, of: Case, name: str) -> None:
    """Refuse what is further from the exact numbers than rounding, or than twice as far as one process."""
    low = DTYPES[dict(of.run).get("precision", "fp32")]
    rounding = 16 * torch.finfo(of.dtype).eps
    for numbers in ("losses", "norms", "validation"):
        measured = [np.array(getattr(each, numbers)) for each in (found, one, exact)]
        unlucky = (
            rounding if low == torch.float32 else torch.finfo(low).eps / 8
        )  # one process may hit a number by chance
        assert far(*measured, unlucky * measured[-1].max()) <= 1, f"{name}: {numbers}"
    for step, gradients in enumerate(exact.gradients):
        assert found.gradients[step].keys() == gradients.keys(), name
        for parameter, gradient in gradients.items():
            others = found.gradients[step][parameter], one.gradients[step][parameter]
            distance = far(*others, gradient, rounding * exact.norms[step])
            assert distance <= 1, f"{name}: {parameter} in step {step + 1}"


def far(found: np.ndarray, one: np.ndarray, exact: np.ndarray, rounding: float) -> float:
    """How far from the exact numbers, as a share of what is allowed."""
    return float(np.abs(found - exact).max() / (2 * np.abs(one - exact).max() + rounding))


def configured(case: Case, folder: Path) -> TrainConfig:
    device = "cuda" if dist.is_initialized() and on_gpus(dist.get_world_size()) else "cpu"
    settings = {"batch_size": 4, "steps": STEPS, "evaluate_sequences": 3, "device": device, **dict(case.run)}
    return TrainConfig(
        model=MODELS[case.model],
        data=DataConfig(
            sources=(str(folder / "texts"),), tokenizer="bytes", validation_share=0.1, packing=case.packing
        ),
        run=RunConfig(folder=str(folder / "run"), start_from=str(folder / case.model), **settings),
        parallel=ParallelConfig(**dict(case.parallel)),
    )


def measured(cases: list[Case], folder: Path) -> list[Measured]:
    """What this rank measures, in each case."""
    return [_measured(case, configured(case, folder)) for case in cases]


def _measured(case: Case, config: TrainConfig) -> Measured:
    torch.set_default_dtype(case.dtype)  # weights are made in it, and the numbers of fp32 are then float64's
    if dist.get_world_size() == 1:
        return _steps(case, Trainer(config, World(pick_device(config.run))))
    with joined(config) as world:
        return _steps(case, Trainer(config, world))


def _steps(case: Case, trainer: Trainer) -> Measured:
    trainer.begin()
    if case.model == "blocks":
        for block in trainer.state.model.h:
            block.attn.pattern = lambda length: BLOCKS
    gradients: list[dict[str, np.ndarray]] = []
    trainer.state.optimizer.register_step_pre_hook(lambda *_: gradients.append(_gradients(trainer.state.model)))
    rows = [trainer.update(step) for step in range(1, STEPS + 1)]
    return Measured(
        [row["loss"] for row in rows], [row["gradient_norm"] for row in rows], gradients, trainer.evaluate()
    )


def _gradients(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: _whole(parameter.grad) for name, parameter in model.named_parameters()}


def _whole(gradient: Tensor | None) -> np.ndarray:
    assert gradient is not None
    whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return whole.double().cpu().numpy()
