"""What is tracked is what metrics.jsonl has, a resumed run stays one run, and what is not installed is said at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

from gossamer.training import tracking
from gossamer.training.config import TrainConfig
from gossamer.training.tracking import require_trackers, tracked

Tiny = Callable[..., TrainConfig]

ROWS = [
    {"step": 1, "loss": 3.0, "mfu": None, "tokens_per_second": 10.0},
    {"step": 2, "loss": None, "skipped": "loss is nan", "tokens_per_second": 11.0},
    {"step": 3, "loss": 2.5, "validation_loss": 2.75, "tokens_per_second": 12.0},
]


def test_tensorboard_has_the_numbers_of_the_rows_once(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(track=("tensorboard",))
    with tracked(config, step=0) as send:
        for row in [*ROWS[:2], {**ROWS[2], "loss": 99.0}]:
            send(row)
    with tracked(config, step=2) as send:  # killed after a checkpoint, and resumed
        send(ROWS[2])
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(1, 3.0), (3, 2.5)]
    assert [(event.step, event.value) for event in shown.Scalars("validation_loss")] == [(3, 2.75)]
    assert [event.step for event in shown.Scalars("tokens_per_second")] == [1, 2, 3]
    assert shown.Tags()["tensors"] == ["skipped/text_summary"]


class Recorded:
    """Stands for the run that `wandb.init` gives."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.rows.append((-1, {}))

    def log(self, numbers: dict, *, step: int) -> None:
        self.rows.append((step, numbers))


def test_wandb_gets_the_rows_the_settings_and_one_identity(tiny: Tiny, tmp_path: Path, monkeypatch) -> None:
    calls: list[dict[str, Any]] = []
    run, wandb = Recorded(), ModuleType("wandb")
    wandb.init = lambda **settings: calls.append(settings) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = tiny(track=("wandb",))
    for step in (0, 2):
        (tmp_path / "run").mkdir(exist_ok=True)
        with tracked(config, step=step) as send:
            for row in ROWS[step:]:
                send(row)
    first, second = calls
    assert first == second and first["resume"] == "allow"
    assert first["config"] == config.to_dict() and first["dir"] == config.run.folder
    assert [step for step, _ in run.rows] == [1, 2, 3, -1, 3, -1]
    assert run.rows[1] == (2, {"tokens_per_second": 11.0, "skipped": True})
    assert run.rows[4][1] == {"loss": 2.5, "validation_loss": 2.75, "tokens_per_second": 12.0, "skipped": False}
    with tracked(replace(config, run=replace(config.run, folder=str(tmp_path))), step=0):
        assert calls[-1]["id"] != first["id"]


def test_wandb_itself_takes_it(tiny: Tiny, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    with tracked(tiny(track=("wandb",)), step=0) as send:
        for row in ROWS:
            send(row)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_named_with_the_fix(name: Any, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: None if package == name else object())
    with pytest.raises(ValueError, match=rf"run\.track has '{name}', which is not installed; .*gossamer\[{name}\]"):
        require_trackers(("tensorboard", "wandb"))


def test_nothing_tracked_needs_nothing(tiny: Tiny, tmp_path: Path) -> None:
    require_trackers(())
    with tracked(tiny(), step=0) as send:
        send(ROWS[0])
    assert not (tmp_path / "run").exists()
