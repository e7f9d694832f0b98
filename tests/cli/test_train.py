"""`gossamer train`: flags over a file over defaults, and a run that goes on."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from gossamer import SparseAttentionConfig
from gossamer.cli.flags import WrongUsage, parsed
from gossamer.cli.train import Train, settings_below
from gossamer.training import TrainConfig

from .conftest import Here


def settings(*arguments: str) -> TrainConfig:
    return parsed(Train, arguments, default=Train(settings=settings_below(arguments))).settings


def test_without_flags_the_settings_are_the_defaults() -> None:
    default = TrainConfig()
    assert settings().run == default.run
    assert settings().model.sparse_config == SparseAttentionConfig().for_heads(default.model.n_head)


def test_flags_lie_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "base.toml"
    path.write_text("[run]\nsteps = 7\nseed = 3\n[model.sparse_config]\nlocal_heads = 6\nglobal_heads = 6\n")
    found = settings("--config", str(path), "--run.steps", "9")
    assert (found.run.steps, found.run.seed) == (9, 3)
    assert found.model.sparse_config.local_heads == 6
    assert found.optimizer == TrainConfig().optimizer


@pytest.mark.parametrize("flag", ["--model.n-head", "--model.n_head"])
def test_the_sparse_settings_follow_the_heads(flag: str) -> None:
    found = settings(flag, "6", "--model.sparse-config.window-size", "64").model
    assert found.sparse_config == SparseAttentionConfig(4, 2, window_size=64)


def test_a_width_that_fits_new_heads_is_accepted() -> None:
    assert settings("--model.n-head", "5", "--model.n-embed", "320").model.head_width == 64
    with pytest.raises(WrongUsage, match="n_embed is 384"):
        settings("--model.n-head", "5")


def test_a_moved_run_keeps_its_settings_where_it_is_now(trained: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(trained, tmp_path / "moved")
    found = settings("--resume", str(moved))
    assert (found.run.steps, found.model.n_embed) == (4, 12)
    assert found.run.folder == str(moved)


def test_the_run_folder_holds_the_settings_and_the_result_is_printed(trained: Path, here: Here, tmp_path: Path) -> None:
    assert tomllib.loads((trained / "config.toml").read_text())["model"]["n_head"] == 3
    done = here("train", "--resume", str(trained))
    assert done.returncode == 0
    assert "4 steps, validation loss" in done.stdout


def test_a_run_is_started_or_resumed_by_one_flag(trained: Path, here: Here) -> None:
    done = here("train", "--config", str(trained / "config.toml"), "--auto-resume")
    assert done.returncode == 0, done.stderr
    assert "4 steps, validation loss" in done.stdout
    with pytest.raises(WrongUsage, match="leave --auto-resume out"):
        settings("--resume", str(trained), "--auto-resume")


def test_another_run_into_the_same_folder_is_refused(trained: Path, here: Here) -> None:
    before = sorted(trained.rglob("*"))
    done = here("train", "--run.folder", str(trained))
    assert done.returncode == 1
    assert "resume" in done.stderr
    assert sorted(trained.rglob("*")) == before
