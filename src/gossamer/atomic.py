"""Files and folders that are either complete on disk or not there at all.

Everything is written beside its target on the same file system, forced to disk, and then renamed: a rename is
the one change that a crash cannot cut in half.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def write_file(path: str | Path, content: bytes) -> None:
    """`path` holds `content` when this returns; after a crash it holds all of it or what it held before."""
    with new_file(path) as partial:
        partial.write_bytes(content)


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A file to write, which replaces `path` when the block ends, complete and on disk.

    If the block raises, or the process is killed, `path` is what it was before.
    """
    path = Path(path).resolve()
    _sweep(path)
    partial = _partial(path)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which appears as `path` when the block ends, complete and on disk.

    If the block raises, or the process is killed, `path` is never seen. What killed processes left beside
    it is removed by the next call.

    Raises:
        FileExistsError: `path` is a file, or a folder with something in it.
    """
    path = Path(path).resolve()
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        publish(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(filled: str | Path, path: str | Path) -> None:
    """The folder `filled`, of the same file system, becomes `path` when all of it is on disk.

    Raises:
        OSError: `path` is a file, or a folder with something in it.
    """
    filled, path = Path(filled).resolve(), Path(path).resolve()
    _sync_tree(filled)
    if path.exists():
        path.rmdir()  # empty, or this raises and the content stays
    filled.rename(path)
    sync(path.parent)


def require_free(path: str | Path) -> None:
    """Refuse a path that something is at already.

    Raises:
        FileExistsError: `path` is a file, or a folder with something in it.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} already exists and is not an empty folder; it is left as it is: give a new one")


def remove_folder(path: str | Path) -> None:
    """`path` is gone, or still whole if the process is killed, and never a folder with some files missing."""
    path = Path(path).resolve()
    _sweep(path)
    partial = _partial(path)
    path.rename(partial)
    shutil.rmtree(partial)


def sync(path: str | Path) -> None:
    """Wait until the file, or the list of names in the folder, is on the disk itself."""
    path = Path(path)
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder, and writes the names of a folder through
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _partial(path: Path) -> Path:
    """Where this process keeps what is not yet, or no longer, `path`."""
    return path.with_name(f".{path.name}{_mark(os.getpid())}")


def _mark(process: int) -> str:
    return f".{socket.gethostname()}.{process}.partial"


def _sweep(path: Path) -> None:
    """Remove what this machine's processes were writing beside `path`, or at it, and no longer can."""
    for left in path.parent.glob(".*.partial"):
        process = left.name.split(".")[-2]
        if left == _partial(path) or (
            process.isdigit() and left.name.endswith(_mark(int(process))) and not psutil.pid_exists(int(process))
        ):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))
