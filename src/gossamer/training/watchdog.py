"""A run that stands still ends by itself, and says first which process is where."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import groupby, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import torch.distributed as dist

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: to be tried again
FILE = "stalled.txt"
LONGEST_PAUSE = 10.0  # seconds between two heartbeats
PATIENCE = 10.0  # seconds after which the store itself is given up
STALLED = "stalled"
STDERR = 2


@dataclass(frozen=True)
class Heartbeat:
    """Where a process is: what `report` is made of.

    Attributes:
        count: Heartbeats so far; every process has the same ones in the same order.
        seconds: How long it has been there, when this was written.
        at: The line of code that its main thread is in.
        written: When, in seconds of the wall clock.
    """

    rank: int
    count: int
    step: int
    doing: str
    seconds: float
    at: str
    host: str
    pid: int
    written: float


class Place(NamedTuple):
    """Where a process is, since when by its own clock, how long it may be there; how long it was stopped before."""

    count: int
    step: int
    doing: str
    since: float
    timeout: float
    stopped: float


class Watchdog:
    """Ends this process when no `beat` comes for `timeout` seconds, in it or in another one that shares the store.

    Each process writes where it is into the store, so that the report of one names those that the others wait for.

    Args:
        folder: Where `stalled.txt` goes, with a copy of what is printed to standard error.
        store: What the processes of the run share; None where there is one.
        end: Called with the exit code when all is said.
    """

    def __init__(
        self,
        timeout: float,
        folder: Path,
        *,
        rank: int = 0,
        size: int = 1,
        store: dist.Store | None = None,
        end: Callable[[int], Any] = os._exit,
    ):
        self._timeout, self._folder, self._rank, self._size, self._end = timeout, folder, rank, size, end
        self._pause = min(timeout / 20, LONGEST_PAUSE)
        self._main, self._over = threading.get_ident(), threading.Event()
        self._store = None
        if store is not None:  # a clone: calls of two threads on one store wait for each other
            self._store = dist.PrefixStore("watchdog", store).clone()  # type: ignore[missing-attribute]
            self._store.set_timeout(timedelta(seconds=PATIENCE))
        self._stopped = 0.0
        self._place = Place(0, 0, "starts", time.monotonic(), timeout, self._stopped)

    def beat(self, doing: str, *, step: int | None = None, timeout: float | None = None) -> None:
        """Say what comes next; costs about a microsecond.

        Args:
            step: Which step it is in; None: the one of the beat before.
            timeout: How long it may take, where that is not what other things may.
        """
        count, before, *_ = self._place
        step, timeout = before if step is None else step, self._timeout if timeout is None else timeout
        self._place = Place(count + 1, step, doing, time.monotonic(), timeout, self._stopped)  # at once, never half

    def watch(self) -> None:
        """Look every now and then until `stop`; runs in a thread of its own.

        Time in which this thread does not come to look either does not count: then the whole process was stopped, by
        Ctrl-Z or a lid that was closed.
        """
        looked = time.monotonic()
        while not self._over.wait(self._pause):
            missed = time.monotonic() - looked - self._pause
            looked += missed + self._pause
            if missed > max(self._pause, 1.0):
                self._stopped += missed
            now = self._heartbeat()
            with suppress(RuntimeError):  # the store's process is gone: this one still watches itself
                self._write(now)
                if self._store is not None and self._store.check([STALLED]):
                    return self._give_up()
            if now.seconds > self._place.timeout:
                return self._give_up()

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()

    def _heartbeat(self) -> Heartbeat:
        count, step, doing, since, _, stopped = self._place
        seconds = time.monotonic() - since - (self._stopped - stopped)
        return Heartbeat(
            *(self._rank, count, step, doing, seconds, _line_of(self._main)),
            *(socket.gethostname(), os.getpid(), time.time()),
        )

    def _write(self, heartbeat: Heartbeat) -> None:
        if self._store is not None:
            self._store.set(str(heartbeat.rank), json.dumps(asdict(heartbeat)))

    def _give_up(self) -> None:
        try:
            self._tell()
            time.sleep(4 * self._pause)  # the others say where they are before a launcher ends them all
        finally:
            self._end(EXIT_CODE)

    def _tell(self) -> None:
        with suppress(RuntimeError):
            if self._store is not None:
                self._store.set(STALLED, str(self._rank))
        heard, timeout = self._heard(), self._place.timeout
        text = report(self._heartbeat(), heard, size=self._size, timeout=timeout, pause=self._pause).encode()
        os.write(STDERR, text)
        stacks = _stacks()
        os.write(STDERR, stacks)
        with suppress(OSError), open(self._folder / FILE, "ab", buffering=0) as file:
            file.write(text + stacks)  # at once, so that processes do not mix their lines
            os.fsync(file)

    def _heard(self) -> list[Heartbeat]:
        heard = []
        with suppress(RuntimeError):
            for rank in range(self._size):
                if self._store is not None and rank != self._rank and self._store.check([str(rank)]):
                    heard.append(Heartbeat(**json.loads(self._store.get(str(rank)))))
        return heard


@contextmanager
def watched(
    timeout: float, folder: Path, *, rank: int = 0, size: int = 1, store: dist.Store | None = None
) -> Iterator[Watchdog]:
    """A watchdog for as long as the block lasts."""
    watchdog = Watchdog(timeout, folder, rank=rank, size=size, store=store)
    thread = threading.Thread(target=watchdog.watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()
        thread.join(PATIENCE)


def report(own: Heartbeat, others: Sequence[Heartbeat], *, size: int, timeout: float, pause: float) -> str:
    """Where all processes are, first those that the others wait for; one line for all that are at the same place.

    Args:
        own: The process that reports.
        others: The last heartbeats of those that wrote any.
        pause: Seconds between two heartbeats; a process that is silent for much longer is called so.
    """
    now = own.written
    current = [replace(beat, seconds=beat.seconds + max(0.0, now - beat.written)) for beat in (own, *others)]
    current.sort(key=lambda beat: (beat.count, beat.step, beat.doing, beat.at, beat.rank))
    lines = [
        f"\nrank {own.rank} of {size}: the run stands still for over {timeout:g} s (parallel.timeout_seconds). "
        f"Process {own.pid} on {own.host} ends with code {EXIT_CODE}, to be started again."
    ]
    for _, same in groupby(current, key=lambda beat: (beat.count, beat.step, beat.doing, beat.at)):
        lines.append(_described(list(same), now, pause))
    if missing := set(range(size)) - {beat.rank for beat in current}:
        lines.append(f"  {_numbered(missing)}: not heard of")
    behind = [beat for beat in current if beat.count == current[0].count]
    if len(behind) < len(current):
        places = ", ".join(f"rank {beat.rank} is process {beat.pid} on {beat.host}" for beat in behind[:8])
        lines.append(f"  The others wait for {_numbered({beat.rank for beat in behind})}: {places}.")
    return "\n".join(lines) + "\n"


def _described(same: list[Heartbeat], now: float, pause: float) -> str:
    one, longest = same[0], max(beat.seconds for beat in same)
    text = (
        f"  {_numbered({beat.rank for beat in same})}: step {one.step}, {one.doing}, for {longest:.1f} s, at {one.at}"
    )
    silent = {beat.rank: now - beat.written for beat in same if now - beat.written > 5 * pause + 1}
    if silent:
        text += f"; {_numbered(set(silent))} silent for up to {max(silent.values()):.1f} s"
    return text


def _numbered(ranks: set[int]) -> str:
    """The ranks with gaps left out: ranks 0-2, 5."""
    ordered = sorted(ranks)
    ends = [a for a, b in pairwise(ordered) if b > a + 1]
    starts = [b for a, b in pairwise(ordered) if b > a + 1]
    runs = zip([ordered[0], *starts], [*ends, ordered[-1]], strict=True)
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' * (len(ordered) > 1)} {listed}"


def _stacks() -> bytes:
    """Where each thread of this process is, call by call."""
    with TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


def _line_of(thread: int) -> str:
    """The line of code that a thread is in."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "its end"
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
