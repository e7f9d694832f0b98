"""Ctrl-C and SIGTERM as a request: finish the step, save, and stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from types import FrameType


class Interrupted(Exception):
    """Training was asked to stop, saved its state and can be resumed.

    Attributes:
        signal: What asked: SIGINT or SIGTERM.
        step: Steps done and saved.
        folder: The run's folder.
    """

    def __init__(self, signal: Signals, step: int, folder: Path):
        super().__init__(f"{signal.name} after step {step}: all is saved in {folder}; resume to go on from there")
        self.signal, self.step, self.folder = signal, step, folder


class StopRequest:
    """Which signal has asked to stop, if any has."""

    signal: Signals | None = None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Within the block a first SIGINT or SIGTERM is only noted; a second one acts as it did before.

    Python delivers signals to its main thread only: in any other thread the block changes nothing. A signal
    that was ignored before, as in a job that outlives its terminal, stays ignored.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = Signals(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set from Python

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
