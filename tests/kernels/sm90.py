"""Compiles for Hopper what a call would launch there, on a machine without a GPU.

The kernels' own entry points are called with tensors on the CPU. Triton is told of a device of compute capability
9.0, compiles each kernel for it, and stops where it would launch.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from tests.kernels.machine_code import listing, one_by_one
from tests.kernels.register_release import given_away_in

SHARED_MEMORY = 227 * 1024
"""Bytes that a program may have on Hopper."""

MULTIPROCESSORS = 132

MOST_PROGRAMS = 65_535
"""Along the second and the third axis of a grid."""


@dataclass(frozen=True)
class Compiled:
    """One kernel as Hopper would run it."""

    name: str
    registers: int
    stack: int
    """Bytes of local memory for each thread: what the registers could not hold."""
    shared_memory: int
    given_away: tuple[str, ...]
    """Loads and stores that still use registers when these are given to another warpgroup."""
    one_by_one: bool
    """Whether each matrix instruction is waited for before the next."""

    @property
    def faults(self) -> list[str]:
        """What must not ship."""
        faults = [f"{self.name} spills {self.stack} bytes a thread"] if self.stack else []
        if self.shared_memory > SHARED_MEMORY:
            faults.append(f"{self.name} wants {self.shared_memory} bytes of shared memory")
        if self.one_by_one:
            faults.append(f"{self.name} waits for each matrix instruction: too many registers are wanted at once")
        return faults + [f"{self.name}: {fault}" for fault in self.given_away]


@contextmanager
def hopper() -> Iterator[list[Compiled]]:
    """Every kernel launched inside is compiled for sm_90, described in the list, and not run."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    device = SimpleNamespace(
        get_current_device=lambda: "sm_90",
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    compile, found = JITFunction.run, {}

    def launch(kernel: JITFunction, *given: object, grid: object, warmup: bool, **named: object) -> None:
        if not callable(grid):
            assert all(programs <= MOST_PROGRAMS for programs in tuple(grid)[1:]), f"no grid has {grid} programs"
        made = compile(kernel, *given, grid=grid, warmup=True, **named)
        if made.hash not in found:
            found[made.hash] = described(made)
            kernels.append(found[made.hash])

    kernels: list[Compiled] = []
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    with (
        mock.patch.object(driver, "_active", device),
        mock.patch.object(JITFunction, "run", launch),
        mock.patch.object(torch.cuda, "get_device_properties", lambda device: properties),
        mock.patch.object(torch.cuda, "get_device_capability", lambda device: (9, 0)),
        mock.patch.object(torch.cuda, "device", lambda device: nullcontext()),
    ):
        yield kernels


def described(kernel: object) -> Compiled:
    """What cuobjdump and nvdisasm say of the machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {key: int(number) for key, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    cubin, specialized = kernel.asm["cubin"], "setmaxnreg" in kernel.asm["ptx"]
    return Compiled(
        kernel.metadata.name,
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
        kernel.metadata.shared,
        given_away_in(cubin) if specialized else (),
        one_by_one(listing(cubin)) if specialized else False,
    )
