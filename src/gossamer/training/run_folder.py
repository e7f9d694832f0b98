"""The folder of a run: made once, whole; entered by one process at a time; never overwritten."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..atomic import new_folder
from .config import TrainConfig
from .distributed import ALONE, World
from .journal import TOKENIZER
from .preparation import tokens_for

CONFIG = "config.toml"
DATA = "data"
LOCK = ".lock"
MOVABLE = (  # what changes no number
    *("run.folder", "run.keep_checkpoints", "run.keep_every", "run.background_saves"),
    *("run.track", "run.profile_steps", "run.peak_flops", "run.activation_checkpointing"),
)
FREE = ("parallel.", "guard.")  # a run may go on over more processes or fewer, and leave out other steps than before


def start(config: TrainConfig) -> None:
    """Make the run's folder: configuration, tokenizer and, unless `data.folder` is elsewhere, the tokens.

    Raises:
        OSError: There is no room for them; nothing was made.
        FileExistsError: The folder holds something already.
        ValueError: The text or the tokenizer cannot be used; nothing was made.
    """
    folder = Path(config.run.folder)
    if holds_run(folder):
        raise FileExistsError(f"run.folder {folder} holds a run; resume it, or give another folder for a new one")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"run.folder {folder} is not an empty folder; give a new one")
    with _naming_a_full_disk(folder), new_folder(folder) as partial:
        tokens = Path(config.data.folder or partial / DATA)
        tokens_for(config.data, tokens, vocab_size=config.model.known_tokens, context_size=config.model.context_size)
        shutil.copytree(tokens / TOKENIZER, partial / TOKENIZER)
        config.to_toml(partial / CONFIG)


def require_same(config: TrainConfig) -> None:
    """Refuse to resume a run with another configuration than it was started with.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: A field differs; the message names it.
    """
    path = Path(config.run.folder, CONFIG)
    if not path.is_file():
        raise FileNotFoundError(f"run.folder {path.parent} holds no run to resume; start it without resume")
    for name, (given, stored) in config.changes(TrainConfig.from_toml(path)).items():
        if name in MOVABLE or name.startswith(FREE):
            continue
        raise ValueError(
            f"{name} is {given!r}, but the run in {path.parent} was started with {stored!r}; "
            f"give {name}={stored!r} to resume it, or start a new run in another folder"
        )


def holds_run(folder: str | Path) -> bool:
    """Whether a run was started in the folder."""
    return Path(folder, CONFIG).is_file()


@contextmanager
def opened(config: TrainConfig, *, resume: bool, world: World = ALONE) -> Iterator[Path]:
    """The run's folder, new or resumed, which no other process but those of `world` may enter during the block.

    The first of them makes it while the others wait; all raise what it raises.

    Raises:
        FileExistsError: The run is new and its folder is not.
        FileNotFoundError: The run is resumed and there is none.
        ValueError: The run is resumed with another configuration, or its text cannot be used.
        RuntimeError: Another process is training it.
    """
    folder = Path(config.run.folder)
    lock = FileLock(folder / LOCK)

    def enter() -> None:
        (require_same if resume else start)(config)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(f"another process is training the run in {folder}; wait for it or stop it") from None

    world.on_first(enter)
    try:
        yield folder
    finally:
        lock.release()


@contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fault = f"{error.strerror}: the run was not started; make room on that disk or give another run.folder"
        raise OSError(error.errno, fault, str(folder)) from error


def tokens_folder(config: TrainConfig) -> Path:
    """Where the run's tokens are."""
    return Path(config.data.folder or Path(config.run.folder, DATA))
