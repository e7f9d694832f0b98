"""Faults as edits of a kernel's source: its module is imported with one piece of its text replaced.

Compilers and the interpreter read the source of what they run, so that an edit reaches every line of a kernel.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory

import gossamer.kernels  # the backends: they import kernels when they run, which here is each time anew

KERNELS = gossamer.kernels.__name__


@dataclass(frozen=True)
class Fault:
    """What stands in a module of the kernels once, what takes its place, and the name of the check that finds it."""

    module: str
    sound: str
    faulty: str
    check: str

    @property
    def source(self) -> str:
        """The module's text with the fault in it."""
        text = Path(gossamer.kernels.__file__).parent.joinpath(*self.module.split(".")).with_suffix(".py").read_text()
        times = text.count(self.sound)
        if times != 1:
            raise LookupError(f"{self.module} has {self.sound!r} {times} times; write the fault for what it has now")
        return text.replace(self.sound, self.faulty)


@contextmanager
def planted(fault: Fault | None) -> Iterator[None]:
    """Inside, kernels are imported anew and with the fault."""
    before = set(sys.modules)
    try:
        with TemporaryDirectory() as folder:
            if fault is not None:
                _import_with(fault, Path(folder))
            yield
    finally:
        for name in set(sys.modules) - before:
            if name.startswith(f"{KERNELS}."):
                package, _, own = name.rpartition(".")
                delattr(sys.modules[package], own)
                del sys.modules[name]


def checked(check: Callable[[], None], fault: Fault | None = None) -> None:
    """The check, with the fault.

    Raises:
        AssertionError: The check fails. Whatever else is raised ends the process: that a fault raises, or has no place
            in what the kernel is now, is no finding.
    """
    try:
        with planted(fault):
            check()
    except AssertionError:
        raise
    except Exception as error:
        raise SystemExit(traceback.format_exc()) from error


def _import_with(fault: Fault, folder: Path) -> None:
    name = f"{KERNELS}.{fault.module}"
    package, _, own = name.rpartition(".")
    if name in sys.modules:
        raise ImportError(f"{name} is imported already; the fault would not reach who uses it")
    path = folder / f"{own}.py"
    path.write_text(fault.source)
    spec = spec_from_file_location(name, path)
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    setattr(import_module(package), own, module)
