"""How long something took and how much memory it needed, on a GPU or a CPU."""

import ctypes
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import psutil

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

MIB = 2**20
SAMPLE_SECONDS = 0.001


class Counter(Protocol):
    """Memory in use, by one way of counting: a high-water mark that can be lowered to the present level."""

    def restart(self) -> int:
        """Forget the old high-water mark; return the bytes in use now."""
        ...

    def highest(self) -> int:
        """Most bytes in use since the last restart."""
        ...

    def close(self) -> None: ...


class Peak:
    """The most memory in use during a `peak_memory` block, above what was in use when it began."""

    def __init__(self, counter: Counter):
        self._counter: Counter | None = counter
        self._base = self._highest = counter.restart()

    @property
    def bytes(self) -> int:
        """Bytes so far while the block runs, the final figure after it."""
        self.look()
        return max(0, self._highest - self._base)

    def look(self) -> None:
        if self._counter is not None:
            self._highest = max(self._highest, self._counter.highest())

    def close(self) -> None:
        self.look()
        if self._counter is not None:
            self._counter.close()
        self._counter = None


# The kernel and the CUDA allocator keep one high-water mark for the whole process. A block that begins inside
# another one lowers it, so the outer one first notes what it has seen.
_open_peaks: list[Peak] = []


@contextmanager
def peak_memory(device: object = "cpu") -> Generator[Peak]:
    """Memory that the block needs at its highest moment; what was allocated before it does not count.

    On CUDA the bytes are those of the device's allocator. On any other device they are the growth of this
    process' resident set, which contains everything the block touches: tensors, scratch space and Python
    objects. Freed memory that the C library still holds is given back to the system first, so that using it
    again is seen. Where the system keeps no resettable high-water mark, the resident set is sampled every
    millisecond and a shorter peak may be missed. Blocks may be nested.

    Args:
        device: `"cpu"`, `"cuda"`, `"cuda:1"` or a `torch.device`.

    >>> with peak_memory() as peak:
    ...     room = bytearray(64 * 2**20)
    >>> 60 < peak.bytes / 2**20 < 70
    True
    """
    for outer in _open_peaks:
        outer.look()
    peak = Peak(_counter(str(device)))
    _open_peaks.append(peak)
    try:
        yield peak
    finally:
        _open_peaks.remove(peak)
        peak.close()


def _counter(device: str) -> Counter:
    if device.startswith("cuda"):
        return CudaAllocator(device)
    return ResidentMark() if ResidentMark.works() else ResidentSamples()


class CudaAllocator:
    """Bytes that PyTorch's caching allocator has handed out on one GPU."""

    def __init__(self, device: str):
        import torch

        self._cuda = torch.cuda
        self._device = torch.device(device)

    def restart(self) -> int:
        self._cuda.reset_peak_memory_stats(self._device)
        return self._cuda.memory_allocated(self._device)

    def highest(self) -> int:
        return self._cuda.max_memory_allocated(self._device)

    def close(self) -> None:
        pass


class ResidentMark:
    """Linux's own high-water mark of the resident set (VmHWM): exact, and free while the block runs."""

    _LOWER_THE_MARK = "5"  # proc_pid_clear_refs(5)

    @classmethod
    def works(cls) -> bool:
        """True where the mark exists and may be lowered; some containers accept the write and ignore it."""
        try:
            mark = cls()
            now = mark.restart()
            return mark.highest() - now < MIB
        except (OSError, LookupError):
            return False

    def restart(self) -> int:
        _return_freed_memory()
        Path("/proc/self/clear_refs").write_text(self._LOWER_THE_MARK)
        return self._status("VmRSS")

    def highest(self) -> int:
        return self._status("VmHWM")

    def close(self) -> None:
        pass

    def _status(self, field: str) -> int:
        with open("/proc/self/status") as lines:
            values = dict(line.split(":", 1) for line in lines)
        return int(values[field].split()[0]) * 1024


class ResidentSamples:
    """The resident set read by a thread every millisecond, for systems without a mark that can be lowered."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._highest = 0
        self._thread = threading.Thread(target=self._sample, name="gossamer-memory", daemon=True)
        self._thread.start()

    def restart(self) -> int:
        _return_freed_memory()
        self._highest = self._process.memory_info().rss
        return self._highest

    def highest(self) -> int:
        self._highest = max(self._highest, self._process.memory_info().rss)
        return self._highest

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.highest()


def _return_freed_memory() -> None:
    # glibc keeps freed blocks resident, and a peak that reuses them would not be seen.
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@dataclass(frozen=True)
class Performance:
    """What one call cost: wall time in seconds, and peak memory in bytes above the level before it."""

    seconds: float
    peak_bytes: int


class Monitored(Protocol[P, R]):
    """A function that remembers, as `last`, what its latest call cost."""

    last: Performance | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


def monitor_performance(function: Callable[P, R]) -> Monitored[P, R]:
    """Each call of the decorated function is timed and its peak memory measured: logged, and kept as `.last`.

    Work that the call left running on a GPU is waited for. The memory is the GPU's where the call used any,
    else the growth of the resident set. A call that raises leaves `.last` as it was.

    >>> @monitor_performance
    ... def double(x):
    ...     return 2 * x
    >>> double(21), double.last.seconds < 1
    (42, True)
    """

    @functools.wraps(function)
    def monitored(*args: P.args, **kwargs: P.kwargs) -> R:
        cuda = _cuda()
        with peak_memory() as host, peak_memory("cuda" if cuda else "cpu") as gpu:
            start = _now(cuda)
            result = function(*args, **kwargs)
            seconds = _now(cuda) - start
        memory = gpu.bytes or host.bytes
        wrapper.last = Performance(seconds, memory)
        name = getattr(function, "__qualname__", repr(function))
        logger.info("%s took %.3f ms and %.1f MiB", name, 1e3 * seconds, memory / MIB)
        return result

    wrapper: Any = monitored
    wrapper.last = None
    return wrapper


def _cuda() -> Any:
    """`torch.cuda` where there is a GPU to wait for, else None; torch that was never loaded used none."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _now(cuda: Any) -> float:
    if cuda is not None:
        cuda.synchronize()
    return time.perf_counter()
