"""A checkpoint is whole or passed over, and what is on disk is never made worse by what fails."""

import errno
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from gossamer.config import GPT2Config
from gossamer.models import config_file
from gossamer.models.gpt2 import GPT2
from gossamer.training import checkpoint, storage
from gossamer.training.checkpoint import Saver, State, restore
from gossamer.training.checkpoint_folders import CheckpointError, folder_of, latest, settle, steps
from gossamer.training.config import OptimizerConfig
from gossamer.training.manifest import damage
from gossamer.training.optimizer import adamw


def state(*, step: int = 0, seed: int = 0, **shape: int) -> State:
    torch.manual_seed(seed)
    small = GPT2Config(vocab_size=11, context_size=8, n_layer=1, n_head=1, n_embed=8)
    model = GPT2(replace(small, **shape))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=True)
    return State(model, adamw(model, OptimizerConfig()), scaler, tokens="digest", step=step)


def train(state: State, steps: int = 1) -> None:
    for _ in range(steps):
        for parameter in state.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizer.step()
        state.step += 1


def save(run: Path, state: State, *, keep: int, background: bool = False) -> Path:
    with Saver(run, state, keep=keep, background=background) as saver:
        saver.save()
    return folder_of(run, state.step)


def parameters(state: State) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.model.parameters()])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1, 2 and 3."""
    training = state()
    for _ in range(3):
        train(training)
        save(tmp_path, training, keep=3)
    return tmp_path


def test_a_restored_state_goes_on_bit_for_bit(tmp_path) -> None:
    straight = state()
    train(straight, 2)
    straight.scaler.load_state_dict({**straight.scaler.state_dict(), "scale": 2.0**7})
    torch.manual_seed(7)
    folder = save(tmp_path, straight, keep=1)
    train(straight, 2)
    drawn = torch.rand(3)
    resumed = state(seed=5)
    restore(folder, resumed)
    assert (resumed.step, resumed.scaler.get_scale()) == (2, 2.0**7)
    train(resumed, 2)
    assert torch.equal(parameters(resumed), parameters(straight))
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("background", [False, True])
def test_what_is_saved_is_the_state_at_that_moment(tmp_path, monkeypatch, background: bool) -> None:
    """Training goes on before the first byte is written."""
    moved_on = threading.Event()
    write = storage.save_file

    def slow(*arguments, **settings) -> None:
        assert not background or moved_on.wait(60)
        write(*arguments, **settings)

    monkeypatch.setattr(storage, "save_file", slow)
    straight = state()
    train(straight, 2)
    going_on = state()
    train(going_on, 2)
    with Saver(tmp_path, going_on, keep=1, background=background) as saver:
        torch.manual_seed(7)
        saver.save()
        train(going_on, 3)
        going_on.memories["late"] = Counter(1)
        moved_on.set()
    resumed = state(seed=5)
    restore(latest(tmp_path), resumed)
    assert resumed.step == 2
    assert torch.equal(parameters(resumed), parameters(straight))
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), drawn_after(latest(tmp_path)))


def drawn_after(checkpoint: Path) -> torch.Tensor:
    restore(checkpoint, state())
    return torch.rand(3)


class Counter:
    """What training remembers, in JSON."""

    def __init__(self, count: int):
        self.count = count

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, stored: dict[str, int]) -> None:
        self.count = stored["count"]


def test_what_else_training_remembers_comes_back(tmp_path) -> None:
    saved, resumed = state(), state()
    saved.memories |= {"skips": Counter(3), "gone": Counter(4)}
    resumed.memories |= {"skips": Counter(0), "new": Counter(5)}
    restore(save(tmp_path, saved, keep=1), resumed)
    assert {name: memory.count for name, memory in resumed.memories.items()} == {"skips": 3, "new": 5}


def test_a_checkpoint_is_a_model_that_loads(run: Path) -> None:
    straight = state()
    train(straight, 3)
    assert torch.equal(parameters(State(GPT2.load(latest(run)), None, None, "")), parameters(straight))


def test_no_checkpoint_holds_a_pickle(run: Path) -> None:
    kinds = {path.suffix for path in latest(run).iterdir()}
    assert kinds == {".safetensors", ".json"}


def test_the_newest_ones_stay(tmp_path) -> None:
    training = state()
    for _ in range(5):
        train(training)
        save(tmp_path, training, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000004", "step-00000005"]


def test_those_of_every_so_many_steps_stay_for_ever(tmp_path) -> None:
    training = state()
    with Saver(tmp_path, training, keep=1, keep_every=3) as saver:
        for _ in range(8):
            train(training)
            saver.save()
    assert steps(tmp_path) == [3, 6, 8]


def test_older_ones_go_only_after_the_new_one_is_there(tmp_path, monkeypatch, caplog) -> None:
    training = state()
    train(training)
    save(tmp_path, training, keep=1)

    def refuse(path: Path) -> None:
        assert damage(folder_of(tmp_path, 2)) is None
        raise PermissionError("not yours")

    monkeypatch.setattr(checkpoint, "remove_folder", refuse)
    train(training)
    save(tmp_path, training, keep=1)
    assert "the old checkpoint of step 1 could not be removed: not yours" in caplog.text
    assert steps(tmp_path) == [1, 2]


def test_other_tokens_are_refused(run: Path) -> None:
    other = state()
    other.tokens = "other"
    with pytest.raises(CheckpointError, match=r"step-00000003 was trained on other tokens"):
        restore(latest(run), other)


def test_another_model_is_refused(run: Path) -> None:
    for shape in ({"n_embed": 16}, {"n_layer": 2}):
        with pytest.raises(CheckpointError, match=r"start a new run"):
            restore(latest(run), state(**shape))


FILES = ["model.safetensors", "optimizer.safetensors", "random.safetensors", "training.json", "config.json"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run: Path, name: str, harm, caplog) -> None:
    harm(run / "checkpoints" / "step-00000003" / name)
    assert latest(run).name == "step-00000002"
    assert "step-00000003 is damaged and passed over" in caplog.text
    assert name in caplog.text


def test_the_manifest_names_every_file(run: Path) -> None:
    assert sorted(json.loads((latest(run) / "manifest.json").read_text())["files"]) == sorted(FILES)


def test_a_manifest_cannot_point_elsewhere(run: Path) -> None:
    manifest = latest(run) / "manifest.json"
    manifest.write_text(json.dumps({"format": 2, "files": {"../../secret": {"bytes": 1, "sha256": ""}}}))
    assert "which is no plain file name" in str(damage(manifest.parent))


def test_when_all_are_damaged_the_error_says_how(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        cut(folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"every checkpoint .* is damaged \(step-00000003: model\.safetensors has"
    ):
        latest(run)


def test_a_folder_without_checkpoints_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        latest(tmp_path)


def test_unfinished_folders_are_not_checkpoints(run: Path) -> None:
    shutil.copytree(latest(run), run / "checkpoints" / ".step-00000009.host.1.partial")
    shutil.copytree(latest(run), run / "checkpoints" / "step-9")
    assert latest(run).name == "step-00000003"


def test_what_killed_processes_left_is_removed_on_the_next_resume(run: Path) -> None:
    for left in (".step-00000003.here.1.partial", ".step-00000009.elsewhere.2.partial"):
        shutil.copytree(latest(run), run / "checkpoints" / left)
    settle(run, at=3)
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000001", "step-00000002", "step-00000003"]


def test_damaged_ones_are_set_aside_so_that_their_steps_can_be_saved_again(run: Path) -> None:
    for _ in range(2):
        cut(run / "checkpoints" / "step-00000003" / "model.safetensors")
        training = state()
        restore(latest(run), training)
        settle(run, at=training.step)
        train(training)
        assert save(run, training, keep=3).name == "step-00000003"
    assert sorted(os.listdir(run / "checkpoints"))[-1] == "step-00000003.damaged"
    assert latest(run).name == "step-00000003"


def full(*arguments, **settings):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_rust(*arguments, **settings):
    raise SafetensorError("Error while serializing: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("place", "name", "failure"),
    [
        (config_file, "write", full),
        (storage, "save_file", full),
        (storage, "save_file", full_in_rust),
        (Path, "write_text", full),
        (os, "fsync", full),
        (Path, "rename", full),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_intact(run: Path, monkeypatch, place, name: str, failure) -> None:
    training = state(step=4)
    train(training)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, failure)
        with pytest.raises(CheckpointError, match=r"step 5 .*No space left.*checkpoint of step 3 is intact.*Make room"):
            save(run, training, keep=1)
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000001", "step-00000002", "step-00000003"]
    assert damage(latest(run)) is None
    assert save(run, training, keep=1).name == "step-00000005"


def test_a_full_disk_in_the_background_is_reported_by_the_next_save(run: Path, monkeypatch) -> None:
    training = state(step=4)
    train(training)
    with monkeypatch.context() as patch, Saver(run, training, keep=1, background=True) as saver:
        patch.setattr(storage, "save_file", full)
        saver.save()
        train(training)
        with pytest.raises(CheckpointError, match=r"step 5 .*No space left.*step 3 is intact"):
            saver.save()
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_full_disk_in_the_background_is_reported_at_the_end(run: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(storage, "save_file", full)
    training = state(step=5)
    with (
        pytest.raises(CheckpointError, match=r"step 5 .*No space left"),
        Saver(run, training, keep=1, background=True) as saver,
    ):
        saver.save()
    with pytest.raises(ZeroDivisionError), Saver(run, training, keep=1, background=True) as saver:
        saver.save()
        raise ZeroDivisionError  # ends the run, and is not hidden by what happened besides
    assert "step 5 could not be written" in caplog.text
    assert damage(latest(run)) is None


def test_a_checkpoint_of_an_earlier_format_is_refused(run: Path) -> None:
    for step in steps(run):
        manifest = folder_of(run, step) / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text())["files"]))
    with pytest.raises(CheckpointError, match=r"another version of gossamer.*can be the run\.start_from of a new one"):
        latest(run)


def test_a_limit_of_the_system_leaves_the_last_checkpoint_intact(run: Path, file_size_limit) -> None:
    training = state(step=4)
    train(training)
    with file_size_limit(2000), pytest.raises(CheckpointError, match="checkpoint of step 3 is intact"):
        save(run, training, keep=1)
    assert latest(run).name == "step-00000003"
    assert len(os.listdir(run / "checkpoints")) == 3
