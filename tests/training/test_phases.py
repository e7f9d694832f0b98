"""Staged training: windows and contexts grow on the way, and a stop at a border changes no bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.cli.flags import parsed
from gossamer.cli.train import Train, settings_below
from gossamer.models.gpt2 import GPT2
from gossamer.training import checkpoint_folders
from gossamer.training.config import PhaseConfig, RunConfig, TrainConfig
from gossamer.training.distributed import ALONE
from gossamer.training.longformer_lm import longformer_lm_training
from gossamer.training.loop import train
from gossamer.training.metrics import read_metrics
from gossamer.training.run_folder import start
from gossamer.training.trainer import Trainer

Staged = Callable[..., TrainConfig]
WINDOWED = {
    "n_layer": 2,
    "n_head": 2,
    "context_size": 32,
    "windows": (2, 4),
    "dilations": (1, 2),
    "dilated_heads": 1,
    "positions": "rotary",
}


@pytest.fixture
def staged(tiny: Callable[..., TrainConfig]) -> Staged:
    """Two phases of three steps: windows and context double, the learning rate and the batch halve."""

    def config(model: dict[str, Any] | None = None, **run: Any) -> TrainConfig:
        phases = (
            PhaseConfig(3, context_size=8, learning_rate=2e-3, batch_size=4, warmup_steps=2),
            PhaseConfig(3, windows=(4, 8), context_size=16, learning_rate=1e-3, batch_size=2, warmup_steps=1),
        )
        plain = tiny(sparse=False, model=WINDOWED | (model or {}), **run)
        return replace(plain, run=replace(plain.run, steps=RunConfig.steps), phase=phases)

    return config


def rows(folder: Path) -> list[tuple]:
    kept = ("step", "phase", "loss", "learning_rate", "gradient_norm", "validation_loss")
    return [tuple(row.get(name) for name in kept) for row in read_metrics(folder / "metrics.jsonl")]


def test_a_run_goes_through_its_phases(staged: Staged, tmp_path: Path) -> None:
    seen = []
    summary = train(staged(), on_step=seen.append)
    assert summary.steps == 6
    assert [row["phase"] for row in seen] == [1, 1, 1, 2, 2, 2]
    assert [row["learning_rate"] for row in seen] == [1e-3, 2e-3, 2e-3, 1e-3, 1e-3, 1e-3]
    assert GPT2.load(checkpoint_folders.latest(tmp_path / "run")).config.windows == (4, 8)


def test_a_step_is_of_its_phase(staged: Staged) -> None:
    """Its windows, its context, its batch: the loss is that of a model made so, on text read so."""
    config = staged(model={"dropout": 0.0})
    start(config)
    trainer = Trainer(config, ALONE)
    for step, shape, windows in ((1, (4, 8), (2, 4)), (2, (4, 8), (2, 4)), (3, (4, 8), (2, 4)), (4, (2, 16), (4, 8))):
        weights = {name: value.clone() for name, value in trainer.state.model.state_dict().items()}
        row = trainer.update(step)
        tokens, targets = trainer.training_data.batch((step - 1) % 3)
        expected = GPT2(replace(trainer.state.model.config, windows=windows))
        expected.load_state_dict(weights)
        assert tuple(tokens.shape) == shape
        assert row["loss"] == pytest.approx(expected(tokens, targets).loss.item(), rel=1e-6)


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_stopped_before_at_or_after_a_border_goes_on_bit_for_bit(
    staged: Staged, tmp_path: Path, stop: int
) -> None:
    train(staged(folder=str(tmp_path / "straight"), evaluate_every=1))

    class Killed(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == stop + 1:
            raise Killed

    config = staged(evaluate_every=1, checkpoint_every=stop)
    with pytest.raises(Killed):
        train(config, on_step=kill)
    train(config, resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")
    one, other = (GPT2.load(checkpoint_folders.latest(tmp_path / name)).state_dict() for name in ("straight", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_no_token_sees_a_later_one_after_training(staged: Staged, tmp_path: Path) -> None:
    train(staged())
    model = GPT2.load(checkpoint_folders.latest(tmp_path / "run")).eval()
    tokens = torch.randint(257, (2, 32))
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 257
    before, after = model(tokens).logits, model(changed).logits
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20], after[:, 20])


def test_a_run_without_phases_is_one_on_its_schedule() -> None:
    config = TrainConfig()
    (whole,) = config.phases
    assert (whole.steps, whole.context_size, whole.batch_size) == (1000, 512, 16)
    assert (whole.warmup_steps, whole.final_share) == (50, 0.1)


def test_what_a_phase_leaves_open_is_as_in_the_tree() -> None:
    config = TrainConfig(phase=(PhaseConfig(7), PhaseConfig(5, context_size=64, learning_rate=3.0)))
    first, second = config.phases
    assert config.run.steps == 12
    assert (first.context_size, first.learning_rate, first.batch_size) == (512, 1e-3, 16)
    assert (second.context_size, second.learning_rate) == (64, 3.0)


def test_phases_are_tables_of_the_file_and_flags_of_the_command(staged: Staged, tmp_path: Path) -> None:
    config, path = staged(), tmp_path / "staged.toml"
    config.to_toml(path)
    assert path.read_text().count("[[phase]]") == 2
    assert TrainConfig.from_toml(path) == config
    arguments = ["--config", str(path), "--phase.1.learning-rate", "0.5", "--run.seed", "3"]
    given = parsed(Train, arguments, default=Train(settings=settings_below(arguments))).settings
    assert [phase.learning_rate for phase in given.phase] == [2e-3, 0.5]
    assert given.run.seed == 3 and given.run.steps == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phase": [{"step": 3}]}, r"unknown key phase\[0\]\.step; did you mean phase\[0\]\.steps\?"),
        ({"phase": [{}, {"steps": "3"}]}, r"phase\[1\]\.steps is '3'; give an integer"),
        ({"phase": {"steps": 3}}, r"phase is \{'steps': 3\}; give a list of tables"),
        ({"phase": [{"steps": 0}]}, r"PhaseConfig: steps is 0"),
        ({"phase": [{"learning_rate": -1.0}]}, r"PhaseConfig: learning_rate is -1\.0; give a positive number"),
        ({"phase": [{"context_size": 513}]}, r"phase 1 has context_size=513, beyond model\.context_size=512"),
        ({"phase": [{"windows": [3]}]}, r"phase 1 has windows=\(3,\), and model\.windows is \(\)"),
        ({"phase": [{"windows": ["3"]}]}, r"phase\[0\]\.windows\[0\] is '3'; give an integer"),
        ({"phase": [{"steps": 3}], "run": {"steps": 4}}, r"run\.steps is 4, but the steps of the phases sum to 3"),
        ({"phase": [{"gradient_accumulation": 17}]}, r"phase 1 has gradient_accumulation=17.*give at most 16"),
    ],
)
def test_a_phase_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(settings)


@pytest.mark.parametrize(
    ("size", "steps"),
    [
        ("small", [430_000, 50_000, 50_000, 35_000, 5_000]),
        ("large", [350_000, 25_000, 10_000, 5_000, 5_000]),
    ],
)
def test_the_paper_s_run_is_a_configuration(size: str, steps: list[int], tmp_path: Path) -> None:
    config = longformer_lm_training(size)
    phases = config.phases
    assert [phase.steps for phase in phases] == steps and config.run.steps == sum(steps)
    assert [phase.context_size for phase in phases] == [2_048, 4_096, 8_192, 16_384, 23_040]
    assert [phase.batch_size for phase in phases] == [32, 32, 16, 16, 16]
    assert [phase.learning_rate for phase in phases] == [2.5e-4, 1.25e-4, 6.25e-5, 3.125e-5, 1.5625e-5]
    assert [phase.warmup_steps for phase in phases] == [min(n // 10, 10_000) for n in steps]
    assert [(phase.windows[0], phase.windows[-1]) for phase in phases] == [
        (32, 512), (64, 1_024), (128, 2_048), (256, 4_096), (512, 8_192)
    ]  # fmt: skip
    assert (config.optimizer.weight_decay, config.optimizer.gradient_clip) == (0.01, 0.25)
    config.to_toml(tmp_path / "config.toml")
    assert TrainConfig.from_toml(tmp_path / "config.toml") == config
