"""Launches that cost the host little: what two launches of one kind share is worked out once.

Triton looks at every argument of every launch, which takes far longer than the launch. Here the first launch of a kind
goes through Triton, and what it passes to the driver is kept; the next ones put their addresses in and go straight
there. A kind is all that the rest follows from: shapes, strides, dtypes and alignment of the tensors, and the settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from triton import knobs
from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST
from triton.runtime.driver import driver
from triton.runtime.jit import TensorWrapper

from ..devices import multiprocessors
from ..run_tables import Work
from .configs import ENTRY_REGISTERS
from .descriptors import ALIGNMENT, Tiles

CACHED = 24 << 20
"""Bytes that items at work at the same time sweep over together, in an L2 cache of 50 MB."""

MOST_KNOWN = 1024
"""Kinds of launches kept, about a kilobyte each; beyond it all are forgotten, and Triton is asked again."""

MOST_ADDRESSES = 16
"""Descriptors kept for an operand of a kind of launch; beyond it all are forgotten."""

STREAM = 3
"""Where the driver's launcher takes the stream: after the grid."""


class Launch(NamedTuple):
    """A kernel, how many items of work it has, and what it is called with."""

    kernel: Any
    items: int
    arguments: tuple[Any, ...]
    constants: tuple[Any, ...]
    consumers: int | None = 2
    """Consumer warpgroups of a persistent program; None where a program takes one item and has no warpgroups."""


Operands = Sequence[Tensor | None]
Prepare = Callable[..., Launch]


def heads_cached(*swept: Tensor) -> int:
    """How many heads of what is swept over, [B, H, N, width] each, the cache holds; at least one."""
    return max(1, CACHED // sum(x[0, 0].numel() * x.element_size() for x in swept))


def launch(prepare: Prepare, operands: Operands, *settings: Hashable) -> None:
    """Runs what `prepare(operands, *settings)` says.

    `prepare` may look at how its operands lie in memory and not at what they hold; it passes them on as they are, as
    `Tiles`, or under another dtype. The first operand is a tensor on the current device.
    """
    kind, addresses = _kind(prepare, operands, settings)
    ready = _KNOWN.get(kind)
    if ready is None or _watched():
        _through_triton(kind, prepare, operands, settings)
    else:
        ready.run(addresses)


def launched(work: Work) -> None:
    """Runs the work; what two works of one kind share is worked out once."""
    if work.items:
        launch(_prepared, work.operands, work.kernel, work.items, work.numbers, work.constants)


def _prepared(
    operands: Operands, kernel: Any, items: int, numbers: tuple[int, ...], constants: tuple[int, ...]
) -> Launch:
    return Launch(kernel, items, (*operands, *numbers), constants, None)


def _kind(prepare: Prepare, operands: Operands, settings: tuple[Hashable, ...]) -> tuple[Hashable, list[int | None]]:
    """(all that a launch follows from but for addresses, the addresses)."""
    kind: list[Hashable] = [prepare, operands[0].device, *settings, *map(type, settings)]
    addresses: list[int | None] = []
    for x in operands:
        if x is None:
            kind.append(None)
            addresses.append(None)
        else:
            address = x.data_ptr()
            kind += x.shape, x.stride(), x.dtype, address % ALIGNMENT
            addresses.append(address)
    return tuple(kind), addresses


@dataclass(frozen=True)
class Ready:
    """A launch that lacks its stream and its addresses alone."""

    launcher: Callable[..., None]
    arguments: list[Any]
    tiles: tuple[tuple[int, int, tuple[Any, ...], dict[int | None, Any]], ...]
    """Where a descriptor goes, whose address it begins with, all else that it is made of, and those that were made."""
    pointers: tuple[tuple[int, int], ...]
    """Where an address goes, and whose."""
    device: int

    def run(self, addresses: Sequence[int | None]) -> None:
        """Launches on the current stream."""
        arguments = self.arguments.copy()
        arguments[STREAM] = driver.active.get_current_stream(self.device)
        for place, operand, rest, known in self.tiles:
            address = addresses[operand]
            arguments[place] = known.get(address) or _described(address, rest, known)
        for place, operand in self.pointers:
            arguments[place] = addresses[operand]
        self.launcher(*arguments)


class Repeated:
    """One kind of launch, of tensors that lie alike: after the first, their addresses are all that is looked at."""

    def __init__(self, prepare: Prepare, *settings: Hashable):
        self.prepare, self.settings = prepare, settings
        self.ready: Ready | None = None

    @staticmethod
    def may_run(bits: int) -> bool:
        """Whether addresses that have these bits between them are as aligned as can be, and nobody watches."""
        return not bits % ALIGNMENT and not _watched()

    def run(self, operands: Operands, addresses: Sequence[int | None]) -> None:
        """What `launch` does with the operands, which stand at these addresses."""
        if self.ready is not None:
            self.ready.run(addresses)
            return
        launch(self.prepare, operands, *self.settings)
        self.ready = _KNOWN.get(_kind(self.prepare, operands, self.settings)[0])


def _described(address: int | None, rest: tuple[Any, ...], known: dict[int | None, Any]) -> Any:
    """A new descriptor, kept: allocators give the same addresses again and again."""
    if len(known) >= MOST_ADDRESSES:
        known.clear()
    known[address] = made = driver.active.utils.fill_tma_descriptor(address, *rest)
    return made


_KNOWN: dict[Hashable, Ready] = {}


def _watched() -> bool:
    """Whether somebody, a profiler for example, asked Triton to be told of launches."""
    before, after = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(before, "calls", before) or getattr(after, "calls", after))


def _through_triton(kind: Hashable, prepare: Prepare, operands: Operands, settings: tuple[Hashable, ...]) -> None:
    named = [None if x is None else x.detach() for x in operands]  # one tensor may be given twice, and counts as two
    made = prepare(named, *settings)
    programs, options = made.items, {}
    if made.consumers is not None:
        programs = min(programs, multiprocessors(operands[0].device))
        options = {"num_warps": 4, "maxnreg": ENTRY_REGISTERS[made.consumers]}
    compiled = made.kernel[(programs,)](*made.arguments, *made.constants, **options)
    if compiled is None:  # a test that only compiles
        return
    if len(_KNOWN) >= MOST_KNOWN:
        _KNOWN.clear()
    _KNOWN[kind] = _ready(compiled, programs, made, named)


def _ready(compiled: Any, programs: int, made: Launch, named: Operands) -> Ready:
    """What Triton passed to the driver's launcher for the kernel that it compiled, but for stream and addresses."""
    run = compiled.run
    arguments = [programs, 1, 1, None, compiled.function, run.launch_cooperative_grid, run.launch_pdl]
    arguments += [None, None, compiled.packed_metadata, None, None, None]  # no scratch memory, nobody told of it
    descriptions = iter(compiled.metadata.tensordesc_meta or ())
    tiles, pointers = [], []
    for argument in (*made.arguments, *made.constants):
        if isinstance(argument, Tiles):
            rest = _description(argument, next(descriptions))
            tiles.append((len(arguments), _index(argument.base, named), rest, {}))
            arguments += [None, *argument.shape, *argument.strides]
        elif isinstance(argument, Tensor | TensorWrapper):
            tensor = argument.base if isinstance(argument, TensorWrapper) else argument
            pointers.append((len(arguments), _index(tensor, named)))
            arguments.append(None)
        else:
            arguments.append(argument)
    return Ready(_launcher(run), arguments, tuple(tiles), tuple(pointers), named[0].device.index)


def _index(tensor: Tensor, named: Operands) -> int:
    return next(index for index, operand in enumerate(named) if operand is tensor)


def _description(tiles: Tiles, meta: dict[str, Any]) -> tuple[Any, ...]:
    """What `fill_tma_descriptor` takes after the address."""
    kind = TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]]
    shape, strides = tuple(tiles.shape), tuple(tiles.strides)
    return meta["swizzle"], meta["elem_size"], kind, tuple(meta["block_size"]), shape, strides, 0


def _launcher(run: Any) -> Callable[..., None]:
    """The driver's own launcher: of a kernel with descriptors, under the function that would make them.

    Raises:
        RuntimeError: Triton is not as its release 3.6 was.
    """
    launcher = run.launch
    if inspect.isfunction(launcher):
        launcher = inspect.getclosurevars(launcher).nonlocals.get("launcher")
    if launcher is None or run.global_scratch_size or run.profile_scratch_size:
        raise RuntimeError("Triton launches kernels otherwise than its release 3.6; pip install 'triton==3.6.*'")
    return launcher
