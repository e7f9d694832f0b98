"""Train a GPT-2 on a CPU or one GPU: a plain loop that can be stopped anywhere and resumed exactly."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from ..atomic import sync
from ..measure import Peak, peak_memory
from . import checkpoint_folders, random_states, run_folder
from .checkpoint import Saver, restore
from .config import RunConfig, TrainConfig
from .interruption import Interrupted, StopRequest, stop_signals
from .metrics import FILE as METRICS
from .metrics import Row, Summary, metrics_log, read_metrics
from .progress import progress
from .trainer import Trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig, *, resume: bool = False, on_step: Callable[[Row], None] | None = None) -> Summary:
    """Train as `config` says, into a folder from which the model loads and the run resumes bit for bit.

    `config.run.folder` holds `config.toml`, `tokenizer/`, `data/` (unless `data.folder` is elsewhere),
    `metrics.jsonl` and `checkpoints/`. A row of the metrics has `step`, `loss` (nats per token, before the
    update), `learning_rate`, `gradient_norm` (before clipping; null where fp16 skipped the update),
    `tokens_per_second`, `peak_memory_bytes` (so far), `seconds` (of this step) and, after an evaluation,
    `validation_loss`. Where indexers learn it also has `indexer_loss` (KL divergence in nats per query, the mean over
    the layers), `indexer_gradient_norm` and, after an evaluation, `recall` (recall@k: see `recall`). The caller's
    random number generators are left as they were.

    Args:
        resume: Go on from the newest whole checkpoint, or from the start where there is none yet.
        on_step: Called with each row after it is written.

    Raises:
        ValueError: Something in `config`, or its text, cannot be used; nothing was written.
        FileExistsError: `run.folder` is not new and `resume` is False.
        FileNotFoundError: `resume` is True and `run.folder` holds no run.
        Interrupted: SIGINT or SIGTERM came; the step was finished and everything saved.
        Diverged: The loss or a gradient is not finite.
        CheckpointError: A checkpoint could not be written, or none can be read.
    """
    device = pick_device(config.run)
    with (
        run_folder.opened(config, resume=resume) as folder,
        random_states.apart(config.run.seed),
        peak_memory(device) as peak,
        stop_signals() as stop,
    ):
        trainer = Trainer(config, device)
        if not (resume and _went_back_to_the_latest(folder, trainer)):
            trainer.begin()
        parameters = sum(parameter.numel() for parameter in trainer.state.model.parameters())
        log.debug("training %s parameters on %s, from step %s", f"{parameters:,}", device, trainer.state.step + 1)
        with Saver(
            folder,
            trainer.state,
            keep=config.run.keep_checkpoints,
            keep_every=config.run.keep_every,
            background=config.run.background_saves,
        ) as saver:
            _steps(trainer, config.run, saver, folder, peak=peak, stop=stop, on_step=on_step)
    return Summary.of(read_metrics(folder / METRICS), parameters=parameters, context=config.model.context_size)


def pick_device(config: RunConfig) -> torch.device:
    """The device that `config` names; auto is the first GPU if there is one, else the CPU.

    Raises:
        ValueError: There is no such device here, or it lacks the precision.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]  # CUDA adds a page of advice
        raise ValueError(f"run.device is {name!r}, which cannot be used here ({reason}); give auto or cpu") from error
    if config.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("run.precision is bf16, which this GPU lacks; give fp16 or fp32")
    return device


def _went_back_to_the_latest(folder: Path, trainer: Trainer) -> bool:
    try:
        newest = checkpoint_folders.latest(folder)
    except FileNotFoundError:
        log.warning("%s has no checkpoint yet: training starts from the beginning", folder)
        return False
    restore(newest, trainer.state)
    checkpoint_folders.settle(folder, at=trainer.state.step)
    return True


def _steps(
    trainer: Trainer,
    run: RunConfig,
    saver: Saver,
    folder: Path,
    *,
    peak: Peak,
    stop: StopRequest,
    on_step: Callable[[Row], None] | None,
) -> None:
    done = trainer.state.step
    with (
        metrics_log(folder / METRICS, step=done) as record,
        progress(run.steps, done=done, every=run.report_every) as show,
    ):
        for step in range(done + 1, run.steps + 1):
            row = trainer.update(step)
            last = step == run.steps
            if last or step % run.evaluate_every == 0:
                row["validation_loss"] = trainer.evaluate()
                if (found := trainer.recall()) is not None:
                    row["recall"] = found
            row["peak_memory_bytes"] = peak.bytes
            record(row)
            show(row)
            if on_step is not None:
                on_step(row)
            stopped_by = stop.signal
            if last or stopped_by or step % run.checkpoint_every == 0:
                trainer.require_finite()
                sync(folder / METRICS)
                saver.save()
            if stopped_by and not last:
                saver.wait()
                raise Interrupted(stopped_by, step, folder)
