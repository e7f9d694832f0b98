"""Where the metrics also go, for those who look at many runs side by side."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from ..atomic import write_file
from .config import Tracker, TrainConfig
from .metrics import Row

TENSORBOARD = "tensorboard"  # folder in the run's
FLUSH_SECONDS = 10
WANDB_ID = "wandb-id"  # file in the run's folder
PROJECT = "gossamer"


def require_trackers(trackers: tuple[Tracker, ...]) -> None:
    """Refuse what cannot be written to, before a run begins.

    Raises:
        ValueError: A package is not installed; the message says how to get it.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise ValueError(
                f"run.track has {name!r}, which is not installed; run pip install 'gossamer[{name}]', or leave it out: "
                "metrics.jsonl is always written"
            )


@contextmanager
def tracked(config: TrainConfig, *, step: int) -> Iterator[Callable[[Row], None]]:
    """A function that sends a row of the metrics to all of `run.track`, for as long as the block lasts.

    A run that goes on is the same run there: TensorBoard forgets what lies after `step`, and W&B, which forgets
    nothing, gets the same numbers again.

    Args:
        step: Steps done before this block.
    """
    with ExitStack() as open_ones:
        sinks = [open_ones.enter_context(_SINKS[name](config, step)) for name in config.run.track]

        def send(row: Row) -> None:
            for sink in sinks:
                sink(row)

        yield send


@contextmanager
def _tensorboard(config: TrainConfig, step: int) -> Iterator[Callable[[Row], None]]:
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(config.run.folder, TENSORBOARD)
    with SummaryWriter(str(folder), purge_step=step + 1, flush_secs=FLUSH_SECONDS) as writer:

        def send(row: Row) -> None:
            for name, value in _numbers(row).items():
                writer.add_scalar(name, value, row["step"])
            if why := row.get("skipped"):
                writer.add_text("skipped", why, row["step"])

        yield send


@contextmanager
def _wandb(config: TrainConfig, step: int) -> Iterator[Callable[[Row], None]]:
    import wandb  # type: ignore[missing-import]

    folder = Path(config.run.folder)
    with wandb.init(
        project=PROJECT,
        name=folder.name,
        id=_identity(folder / WANDB_ID),
        resume="allow",
        dir=str(folder),
        config=config.to_dict(),
    ) as run:
        yield lambda row: run.log({**_numbers(row), "skipped": row.get("skipped") is not None}, step=row["step"])


_SINKS: dict[Tracker, Callable[[TrainConfig, int], AbstractContextManager[Callable[[Row], None]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}


def _identity(path: Path) -> str:
    """The run's name at W&B, made once: a run that goes on, or was moved, keeps it."""
    if not path.is_file():
        write_file(path, uuid.uuid4().hex.encode())
    return path.read_text(encoding="utf-8")


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
