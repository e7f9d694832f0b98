"""Train a GPT-2 on one device or many: a plain loop that can be stopped anywhere and resumed exactly."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..atomic import sync
from ..measure import Peak, peak_memory
from . import checkpoint_folders, random_states, run_folder
from .checkpoint import PATIENCE, Saver, restore
from .config import RunConfig, TrainConfig
from .distributed import World, joined
from .efficiency import Efficiency
from .interruption import Interrupted, StopRequest, stop_signals
from .metrics import FILE as METRICS
from .metrics import Row, Summary, metrics_log, read_metrics
from .progress import progress
from .traces import communication_in, trace_of, traced
from .tracking import require_trackers, tracked
from .trainer import Trainer
from .watchdog import watched

log = logging.getLogger(__name__)


def train(
    config: TrainConfig, *, resume: bool | Literal["auto"] = False, on_step: Callable[[Row], None] | None = None
) -> Summary:
    """Train as `config` says, into a folder from which the model loads and the run resumes bit for bit.

    `config.run.folder` holds `config.toml`, `tokenizer/`, `data/` (unless `data.folder` is elsewhere),
    `metrics.jsonl` and `checkpoints/`. A row of the metrics has `step`, `loss` (nats per token, before the
    update), `learning_rate`, `gradient_norm` (before clipping), `tokens_per_second`, `peak_memory_bytes` (so far),
    `seconds` (of this step), `mfu` (operations needed, as a share of the devices' peak; null where that is not known),
    `attention_share` (of the operations), `communication_bytes` (sent by all processes in this step) and, after an
    evaluation, `validation_loss`. A step that was left out has `skipped`, which says why, and null where a number is
    not finite. Where indexers learn there are also `indexer_loss` (KL divergence in nats per query, the mean over the
    layers), `indexer_gradient_norm` and, after an evaluation, `recall` (recall@k: see `recall`). A step of which a
    timeline is written has `communication_seconds`, and `exposed_seconds` in which nothing was computed meanwhile. The
    caller's random number generators are left as they were.

    Processes that torchrun started, or that have a process group, train together, as `config.parallel` says: each calls
    this, and a row says what is true of all of them (but memory, which is the first one's). What goes wrong in the
    folder raises the same error in each.

    Args:
        resume: Go on from the newest whole checkpoint, or from the start where there is none yet. "auto": do so where
            `run.folder` holds a run, and start it where it does not; for jobs that are started again.
        on_step: Called with each row after it is written, in every process.

    Raises:
        ValueError: Something in `config`, or its text, cannot be used; nothing was written.
        FileExistsError: `run.folder` is not new, and not to be resumed.
        FileNotFoundError: `resume` is True and `run.folder` holds no run.
        Interrupted: SIGINT or SIGTERM came to any process; the step was finished and everything saved.
        Diverged: Too many steps in a row had to be left out, or weights or the validation loss are not finite.
        CheckpointError: A checkpoint could not be written, or none can be read.
    """
    require_trackers(config.run.track)
    with joined(config) as world:
        if resume == "auto":
            resume = world.on_first(lambda: run_folder.holds_run(config.run.folder))
        with (
            run_folder.opened(config, resume=resume, world=world) as folder,
            random_states.apart(config.run.seed),
            peak_memory(world.device) as peak,
            stop_signals() as stop,
        ):
            trainer = Trainer(config, world)
            if not (resume and _went_back_to_the_latest(folder, trainer, world)):
                trainer.begin()
            parameters = sum(parameter.numel() for parameter in trainer.state.model.parameters())
            first = trainer.state.step + 1
            log.debug("training %s parameters on %s, from step %s", f"{parameters:,}", world.device, first)
            with _saver(trainer, config.run, folder) as saver:
                _steps(trainer, config, saver, folder, world, peak=peak, stop=stop, on_step=on_step)
            context = config.model.context_size
            return world.on_first(
                lambda: Summary.of(read_metrics(folder / METRICS), parameters=parameters, context=context)
            )


def _saver(trainer: Trainer, run: RunConfig, folder: Path) -> Saver:
    keep, background = run.keep_checkpoints, run.background_saves
    return Saver(folder, trainer.state, keep=keep, keep_every=run.keep_every, background=background)


def _went_back_to_the_latest(folder: Path, trainer: Trainer, world: World) -> bool:
    newest = world.on_first(lambda: checkpoint_folders.latest(folder) if checkpoint_folders.steps(folder) else None)
    if newest is None:
        if world.rank == 0:
            log.warning("%s has no checkpoint yet: training starts from the beginning", folder)
        return False
    restore(newest, trainer.state)
    world.on_first(lambda: checkpoint_folders.settle(folder, at=trainer.state.step))
    return True


@contextmanager
def _written(world: World, config: TrainConfig, folder: Path, done: int) -> Iterator[Callable[[Row], None]]:
    """A function that writes and shows a row: the first process's does, for all of them."""
    if world.rank:
        yield lambda row: None
        return
    run = config.run
    with (
        metrics_log(folder / METRICS, step=done) as record,
        progress(run.steps, done=done, every=run.report_every) as show,
        tracked(config, step=done) as track,
    ):

        def write(row: Row) -> None:
            for sink in (record, show, track):
                sink(row)

        yield write


def _steps(
    trainer: Trainer,
    config: TrainConfig,
    saver: Saver,
    folder: Path,
    world: World,
    *,
    peak: Peak,
    stop: StopRequest,
    on_step: Callable[[Row], None] | None,
) -> None:
    done, run = trainer.state.step, config.run
    efficiency = Efficiency(config, world.device, processes=world.size)
    watch = watched(config.parallel.timeout_seconds, folder, rank=world.rank, size=world.size, store=world.store)
    with _written(world, config, folder, done) as write, watch as watchdog:
        trainer.beat = watchdog.beat
        for step in range(done + 1, run.steps + 1):
            watchdog.beat("reads data", step=step)
            row = _updated(trainer, step, run, folder, world, stop)
            last = step == run.steps
            if last or step % run.evaluate_every == 0:
                row["validation_loss"] = trainer.evaluate()
                if (found := trainer.recall()) is not None:
                    row["recall"] = found
            row["peak_memory_bytes"] = peak.bytes
            row |= efficiency.of(row, trainer.packed_attention)
            write(row)
            if on_step is not None:
                on_step(row)
            # Several learn in the update who was asked before it, so that they stop at the same step.
            stopped_by = stop.signal if world.size == 1 else trainer.stop
            if last or stopped_by or step % run.checkpoint_every == 0:
                watchdog.beat("saves", timeout=PATIENCE.total_seconds())
                trainer.require_finite()
                world.on_first(lambda: sync(folder / METRICS))
                saver.save()
            if stopped_by and not last:
                saver.wait()
                raise Interrupted(stopped_by, step, folder)


def _updated(trainer: Trainer, step: int, run: RunConfig, folder: Path, world: World, stop: StopRequest) -> Row:
    """The row of a step, which leaves a timeline where one is asked for."""
    if step not in run.profile_steps:
        return trainer.update(step, asked=stop.signal)
    trace = trace_of(folder, step, world.rank)
    with traced(trace, world.device):
        row = trainer.update(step, asked=stop.signal)
    if trace.is_file():
        spent = communication_in(trace)
        row |= {"communication_seconds": spent.seconds, "exposed_seconds": spent.exposed_seconds}
    return row
