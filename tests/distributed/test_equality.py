"""However a run is spread over processes, its losses, gradients and their length are those of one process.

All begin with one seed checkpoint. The judge is one process in float64: in float64 the others agree with it to
rounding, and in a lower precision they are not further from it than twice what one process is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.models.gpt2 import GPT2
from gossamer.training import run_folder
from gossamer.training.config import DataConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainConfig
from gossamer.training.distributed import World, joined, pick_device
from gossamer.training.trainer import Trainer
from tests.distributed.launch import on_gpus, run_ranks

CONTEXT, STEPS = 30, 2
SHAPE = GPT2Config(vocab_size=257, context_size=CONTEXT, n_layer=2, n_head=4, n_embed=24)
HEADS = SparseAttentionConfig(local_heads=2, global_heads=2, window_size=6, min_window_size=1)
MODELS = {
    "band": replace(SHAPE, windows=(5, 11)),
    "columns": replace(SHAPE, use_sparse_attention=True, sparse_config=HEADS),
    "rows": replace(SHAPE, use_sparse_attention=True, sparse_config=replace(HEADS, global_rows=True)),
}
FSDP = {"strategy": "fsdp"}


class Measured(NamedTuple):
    """What two steps gave."""

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

    def __str__(self) -> str:
        return " ".join([self.model, *(f"{name}={value}" for name, value in (*self.parallel, *self.run))])

    @property
    def alone(self) -> Case:
        return replace(self, parallel=())

    @property
    def exact(self) -> Case:
        return Case(self.model, run=tuple(pair for pair in self.run if pair[0] != "precision"))


def case(model: str, parallel: Mapping[str, Any] = {}, dtype: torch.dtype = torch.float64, **run: Any) -> Case:
    return Case(model, tuple(parallel.items()), tuple(run.items()), dtype)


EVERYWHERE = [
    *(case(model, spread, batch_size=5) for model in MODELS for spread in ({"strategy": "ddp"}, FSDP)),
    case("columns", {**FSDP, "reshard_after_forward": False}),
    case("columns", {**FSDP, "offload": True}),
    *(case("columns", spread, gradient_accumulation=2, batch_size=9) for spread in ({"strategy": "ddp"}, FSDP)),
    *(
        case("band", spread, activation_checkpointing=kept)
        for kept in ("full", "selective")
        for spread in ({"strategy": "ddp"}, FSDP)
    ),
    *(
        case("columns", spread, torch.float32, precision=precision)
        for precision in ("fp32", "bf16", "fp16")
        for spread in ({"strategy": "ddp"}, FSDP, {**FSDP, "offload": True})
    ),
]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens and, of each model, a seed checkpoint."""
    folder = tmp_path_factory.mktemp("seeds")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(120)))
    for name, shape in MODELS.items():
        torch.manual_seed(1)
        GPT2(shape).save(folder / name)
    run_folder.start(configured(case("columns"), folder))
    return folder


@pytest.fixture(scope="module")
def alone(seeds: Path) -> Callable[[Case], Measured]:
    """What one process measures."""
    wanted = sorted({c for case in EVERYWHERE for c in (case.alone, case.exact)}, key=str)
    found = dict(zip(wanted, run_ranks(measured, 1, wanted, seeds)[0], strict=True))
    return found.__getitem__


@pytest.mark.parametrize("world", [2, 4])
def test_every_way_to_spread_a_run_gives_what_one_process_gives(seeds: Path, alone, world: int) -> None:
    found = run_ranks(measured, world, EVERYWHERE, seeds)
    for number, each in enumerate(EVERYWHERE):
        for rank in range(world):
            require_equal(found[rank][number], alone(each.alone), alone(each.exact), f"{each} in {world}")


def require_equal(found: Measured, one: Measured, exact: Measured, name: str) -> None:
    """Refuse what is further from the exact numbers than rounding, or than twice as far as one process."""
    assert far(found.losses, one.losses, exact.losses) <= 1, name
    assert far(found.norms, one.norms, exact.norms) <= 1, name
    assert far([found.validation], [one.validation], [exact.validation]) <= 1, name
    for step, gradients in enumerate(exact.gradients):
        assert found.gradients[step].keys() == gradients.keys(), name
        size = exact.norms[step]
        for parameter, gradient in gradients.items():
            others = found.gradients[step][parameter], one.gradients[step][parameter]
            assert far(*others, gradient, size=size) <= 1, f"{name}: {parameter} in step {step + 1}"


def far(found: Any, one: Any, exact: Any, size: float = 1.0) -> float:
    """How far from the exact numbers, as a share of what is allowed."""
    found, one, exact = map(np.asarray, (found, one, exact))
    allowed = 2 * np.abs(one - exact).max() + 64 * np.finfo(np.float64).eps * size
    return float(np.abs(found - exact).max() / allowed)


def configured(case: Case, folder: Path) -> TrainConfig:
    device = "cuda" if on_gpus(1) else "cpu"
    settings = {"batch_size": 4, "steps": STEPS, "evaluate_sequences": 3, "device": device, **dict(case.run)}
    return TrainConfig(
        model=MODELS[case.model],
        data=DataConfig(sources=(str(folder / "text.txt"),), tokenizer="bytes", validation_share=0.1),
        optimizer=OptimizerConfig(gradient_clip=1e9),
        run=RunConfig(folder=str(folder / "run"), start_from=str(folder / case.model), **settings),
        parallel=ParallelConfig(**dict(case.parallel)),
    )


def measured(cases: list[Case], folder: Path) -> list[Measured]:
    """What this rank measures, in each case."""
    return [_measured(configured(case, folder), case.dtype) for case in cases]


def _measured(config: TrainConfig, dtype: torch.dtype) -> Measured:
    torch.set_default_dtype(dtype)  # weights are made in it, and the numbers of fp32 are then float64's
    if torch.distributed.get_world_size() == 1:
        return _steps(Trainer(config, World(pick_device(config.run))))
    with joined(config) as world:
        return _steps(Trainer(config, world))


def _steps(trainer: Trainer) -> Measured:
    trainer.begin()
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
