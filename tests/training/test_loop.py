"""A run that is stopped, killed, starved or spoiled goes on exactly where it was, or says why it cannot."""

import errno
import gzip
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.models.gpt2 import GPT2
from gossamer.training import checkpoint_folders, storage, tracking, trainer
from gossamer.training.checkpoint_folders import CheckpointError, latest
from gossamer.training.config import GuardConfig, ParallelConfig, RunConfig, TrainConfig
from gossamer.training.distributed import pick_device
from gossamer.training.interruption import Interrupted
from gossamer.training.loop import train
from gossamer.training.metrics import read_metrics
from gossamer.training.operations import operations
from gossamer.training.traces import trace_of
from gossamer.training.trainer import Diverged
from gossamer.training.watchdog import Watchdog

Tiny = Callable[..., TrainConfig]


class Killed(Exception):
    """Stands for the power going out: nothing is saved."""


def losses(folder: Path) -> list[tuple[int, float, float | None, float]]:
    """What must not differ by a bit; times and memory may."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["step"], row["loss"], row.get("validation_loss"), row["gradient_norm"]) for row in rows]


def after(step: int, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    def on_step(row: dict[str, Any]) -> None:
        if row["step"] == step:
            act()

    return on_step


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_training_learns_and_leaves_a_model_that_loads(tiny: Tiny, tmp_path, sparse: bool) -> None:
    rows = []
    config = tiny(sparse=sparse, steps=40, evaluate_every=15, model={"dropout": 0.0})
    summary = train(config, on_step=rows.append)
    assert rows == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["step"] for row in rows if "validation_loss" in row] == [15, 30, 40]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert summary.validation_loss == rows[-1]["validation_loss"] < rows[0]["loss"] - 0.5
    assert (summary.steps, summary.context) == (40, 16)
    assert summary.tokens_per_second > 0 and summary.peak_memory_bytes > 0
    model = GPT2.load(latest(tmp_path / "run"))
    assert summary.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model.config.use_sparse_attention == sparse


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_two_resumes_in_a_row_change_no_bit(tiny: Tiny, tmp_path, sparse: bool) -> None:
    """The text's 140 windows make 35 steps an epoch, so the last resume crosses into a second one."""
    settings = {"sparse": sparse, "steps": 40, "checkpoint_every": 7, "evaluate_every": 10}
    train(tiny(folder=str(tmp_path / "straight"), **settings))
    for resume, end in ((False, 9), (True, 20), (True, 34)):
        with pytest.raises(Killed):
            train(tiny(**settings), resume=resume, on_step=after(end, kill))
    torch.manual_seed(99)  # the caller's generator decides nothing
    train(tiny(**settings), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    one, other = (GPT2.load(latest(tmp_path / name)).state_dict() for name in ("run", "straight"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_fp16_resumes_with_its_loss_scale(tiny: Tiny, tmp_path) -> None:
    settings = {"precision": "fp16", "steps": 8, "checkpoint_every": 3}
    train(tiny(folder=str(tmp_path / "straight"), **settings))
    with pytest.raises(Killed):
        train(tiny(**settings), on_step=after(5, kill))
    train(tiny(**settings), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_a_run_that_never_saved_starts_from_the_beginning(tiny: Tiny, tmp_path, caplog) -> None:
    train(tiny(folder=str(tmp_path / "straight")))
    with pytest.raises(Killed):
        train(tiny(), on_step=after(3, kill))
    train(tiny(), resume=True)
    assert "has no checkpoint yet" in caplog.text
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_what_one_process_cannot_share_is_said_before_anything_is_written(tiny: Tiny, tmp_path) -> None:
    config = replace(tiny(), parallel=ParallelConfig(context=2))
    with pytest.raises(ValueError, match="context is 2, which does not divide the number of processes, 1; start a mul"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_run_is_started_where_there_is_none_and_resumed_where_there_is(tiny: Tiny, tmp_path) -> None:
    train(tiny(folder=str(tmp_path / "straight")))
    for end in (3, 5):
        with pytest.raises(Killed):
            train(tiny(checkpoint_every=2), resume="auto", on_step=after(end, kill))
    train(tiny(checkpoint_every=2), resume="auto")
    assert [row[:2] for row in losses(tmp_path / "run")] == [row[:2] for row in losses(tmp_path / "straight")]
    with pytest.raises(ValueError, match="seed is 9, but the run"):
        train(tiny(checkpoint_every=2, seed=9), resume="auto")


def test_a_finished_run_resumes_to_the_same_summary(tiny: Tiny) -> None:
    assert train(tiny(), resume=False) == train(tiny(), resume=True)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_stops(tiny: Tiny, tmp_path, number: signal.Signals) -> None:
    train(tiny(folder=str(tmp_path / "straight")))
    with pytest.raises(Interrupted, match=f"{number.name} after step 3: all is saved in .*; resume") as caught:
        train(tiny(), on_step=after(3, lambda: os.kill(os.getpid(), number)))
    assert (caught.value.signal, caught.value.step) == (number, 3)
    assert latest(tmp_path / "run").name == "step-00000003"
    train(tiny(), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


@pytest.mark.usefixtures("usual_signals")
def test_a_run_that_is_stopped_waits_for_what_is_being_saved(tiny: Tiny, tmp_path, monkeypatch) -> None:
    """The checkpoint of step 2 is being written, slowly, when the signal comes."""
    train(tiny(folder=str(tmp_path / "straight")))
    write = storage.save_file

    def slow(*arguments, **settings) -> None:
        time.sleep(0.1)
        write(*arguments, **settings)

    monkeypatch.setattr(storage, "save_file", slow)
    with pytest.raises(Interrupted, match="SIGTERM after step 3"):
        train(tiny(checkpoint_every=2), on_step=after(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert checkpoint_folders.steps(tmp_path / "run") == [2, 3]
    train(tiny(checkpoint_every=2), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


@pytest.mark.usefixtures("usual_signals")
def test_a_signal_in_the_last_step_is_too_late(tiny: Tiny) -> None:
    assert train(tiny(), on_step=after(6, lambda: os.kill(os.getpid(), signal.SIGINT))).steps == 6


def test_the_callers_generator_is_left_as_it_was(tiny: Tiny) -> None:
    state = torch.get_rng_state()
    train(tiny())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides(tiny: Tiny, tmp_path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(tiny(folder=str(tmp_path / name), seed=seed))
    assert losses(tmp_path / "one") == losses(tmp_path / "same")
    assert losses(tmp_path / "one") != losses(tmp_path / "other")


def test_a_checkpoint_cut_in_half_costs_only_its_steps(tiny: Tiny, tmp_path, caplog) -> None:
    train(tiny(folder=str(tmp_path / "straight"), checkpoint_every=2))
    with pytest.raises(Killed):
        train(tiny(checkpoint_every=2), on_step=after(5, kill))
    weights = tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    train(tiny(checkpoint_every=2), resume=True)
    assert "step-00000004 is damaged and passed over: model.safetensors has" in caplog.text
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(tiny: Tiny, tmp_path, monkeypatch) -> None:
    train(tiny(folder=str(tmp_path / "straight"), checkpoint_every=2))
    run = tiny(checkpoint_every=2, background_saves=False)

    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckpointError, match=r"step 4 .*No space left.*step 2 is intact"),
    ):
        train(run, on_step=after(3, lambda: patch.setattr(storage, "save_file", full)))
    train(run, resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_a_run_that_diverges_keeps_its_checkpoints(tiny: Tiny, tmp_path, monkeypatch) -> None:
    def spoil() -> None:
        found = {"targets": 1.0, "sent": 0.0, "attention": 0.0, "loss": float("nan")}
        monkeypatch.setattr(trainer.Trainer, "_backward", lambda *arguments: found)

    config = replace(tiny(checkpoint_every=2), guard=GuardConfig(most_skips=0))
    with pytest.raises(Diverged, match="step 4: loss is nan"):
        train(config, on_step=after(3, spoil))
    assert latest(tmp_path / "run").name == "step-00000002"
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_steps_that_were_left_out_are_left_out_again_after_a_resume(tiny: Tiny, tmp_path, monkeypatch, capsys) -> None:
    """What the guard remembers is in the checkpoints: each spike is one by the steps taken before it."""
    clip = torch.nn.utils.clip_grad_norm_
    long = (6, 7, 11)

    def stretched(parameters: list, most: float) -> torch.Tensor:
        seen.append(1)
        return clip(parameters, most) * (1e3 if len(seen) in long else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stretched)
    guard = GuardConfig(spike_factor=30.0, spike_window=4, most_skips=2)
    config = replace(tiny(steps=12, checkpoint_every=1), guard=guard)
    seen: list[int] = []
    train(replace(config, run=replace(config.run, folder=str(tmp_path / "straight"))))
    straight = read_metrics(tmp_path / "straight" / "metrics.jsonl")
    assert [row["step"] for row in straight if "skipped" in row] == list(long)
    assert "step 6/12  left out: gradient_norm is" in capsys.readouterr().err
    seen.clear()
    for resume, end in ((False, 5), (True, 6), (True, 8)):
        with pytest.raises(Killed):
            train(config, resume=resume, on_step=after(end, kill))
        del seen[end - 1 :]  # the last step was not saved yet, and comes again
    train(config, resume=True)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("skipped") for row in rows] == [row.get("skipped") for row in straight]
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_a_row_says_what_the_step_cost(tiny: Tiny, tmp_path) -> None:
    train(tiny(peak_flops=1e9, profile_steps=(2,)))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    needed = operations(tiny().model, length=16)
    for row in rows:
        assert row["mfu"] == pytest.approx(4 * needed.total / row["seconds"] / 1e9)
        assert row["attention_share"] == needed.attention_share
        assert row["communication_bytes"] == 0
    assert [row["step"] for row in rows if "exposed_seconds" in row] == [2]
    assert (rows[1]["communication_seconds"], rows[1]["exposed_seconds"]) == (0.0, 0.0)
    assert [trace.name for trace in (tmp_path / "run" / "traces").iterdir()] == ["step-00000002.rank-0.json.gz"]


def test_a_run_is_tracked_and_what_is_not_installed_is_said_before_anything_is_written(
    tiny: Tiny, tmp_path, monkeypatch
) -> None:
    config = tiny(track=("tensorboard",))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="which is not installed"):
        patch.setattr(tracking, "find_spec", lambda package: None)
        train(config)
    assert not (tmp_path / "run").exists()
    train(config)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_what_is_watched_and_left_out_may_change_on_the_way(tiny: Tiny, tmp_path) -> None:
    with pytest.raises(Killed):
        train(tiny(checkpoint_every=2), on_step=after(3, kill))
    other = replace(tiny(checkpoint_every=2, profile_steps=(4,), peak_flops=1e12), guard=GuardConfig(most_skips=3))
    train(other, resume=True)
    assert (tmp_path / "run" / "traces").is_dir()


def test_a_run_that_stands_still_ends_with_a_report(tiny: Tiny, tmp_path, monkeypatch) -> None:
    """The training loop beats: a step that hangs is found in the activity that hangs."""
    beats: list[str] = []
    monkeypatch.setattr(Watchdog, "beat", lambda watchdog, doing, **more: beats.append(doing))
    train(tiny(steps=2, evaluate_every=2, gradient_accumulation=2))
    once = ["reads data", *["goes forward", "goes backward"] * 2, "agrees with the others", "updates weights"]
    assert beats == [*once, *once, *["evaluates"] * 2, "saves"]


def test_weights_that_diverged_are_not_saved(tiny: Tiny, tmp_path, monkeypatch) -> None:
    def spoil() -> None:
        monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: torch.zeros(1, dtype=torch.bool))

    with pytest.raises(Diverged, match=r"step 4: the weights .* are not finite"):
        train(tiny(checkpoint_every=2), on_step=after(4, spoil))
    monkeypatch.undo()
    assert latest(tmp_path / "run").name == "step-00000002"


def test_progress_is_printed_as_lines(tiny: Tiny, capsys) -> None:
    train(tiny(report_every=2))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/6", "step 2/6", "step 4/6", "step 6/6"]


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "tpu"])
def test_a_device_that_is_not_there_is_named_before_anything_is_written(tiny: Tiny, tmp_path, device: str) -> None:
    with pytest.raises(ValueError, match=rf"run\.device is '{device}', which cannot be used here .*give auto or cpu"):
        train(tiny(device=device))
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_resumes_with_its_own_random_state(tiny: Tiny, tmp_path, sparse: bool, precision: str) -> None:
    """With half of the activations dropped, other masks would show; a GPU's sums vary in the last bits."""
    settings = {"sparse": sparse, "device": "cuda", "precision": precision, "model": {"dropout": 0.5}}
    straight = train(tiny(folder=str(tmp_path / "straight"), **settings))
    with pytest.raises(Killed):
        train(tiny(**settings, checkpoint_every=2), on_step=after(5, kill))
    resumed = train(tiny(**settings, checkpoint_every=2), resume=True)
    one, other = losses(tmp_path / "straight"), losses(tmp_path / "run")
    assert [row[1] for row in other] == pytest.approx([row[1] for row in one], rel=1e-4)
    assert resumed.validation_loss == pytest.approx(straight.validation_loss, rel=1e-4)
    assert resumed.peak_memory_bytes > 0


@pytest.mark.gpu
def test_a_gpu_s_step_leaves_a_timeline_of_kernels_and_a_share_of_the_peak(tiny: Tiny, tmp_path) -> None:
    train(tiny(device="cuda", profile_steps=(3,), peak_flops=1e15))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(0 < row["mfu"] < 1 for row in rows)
    assert (rows[2]["communication_seconds"], rows[2]["exposed_seconds"]) == (0.0, 0.0)
    with gzip.open(trace_of(tmp_path / "run", 3, 0), "rt") as file:
        assert "kernel" in {event.get("cat") for event in json.load(file)["traceEvents"]}


def test_auto_takes_the_gpu_if_there_is_one() -> None:
    assert pick_device(RunConfig()).type == ("cuda" if torch.cuda.is_available() else "cpu")
