"""The machine and the versions that a measurement or a run was made with."""

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Machine:
    """What a reader must know to repeat a measurement; `None` where the machine has no such thing."""

    system: str
    cpu: str
    cores: int
    threads: int
    memory_bytes: int
    gpu: str | None
    gpu_memory_bytes: int | None
    cuda: str | None
    python: str
    torch: str
    triton: str | None
    gossamer: str
    commit: str | None = None
    """Of this package's files, with "dirty" where they differ from it; None outside a repository."""


def this_machine() -> Machine:
    """The machine this process runs on, as PyTorch sees it."""
    import torch

    gpu = torch.cuda.get_device_properties() if torch.cuda.is_available() else None
    return Machine(
        system=platform.platform(),
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        gpu=gpu.name if gpu else None,
        gpu_memory_bytes=gpu.total_memory if gpu else None,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        torch=torch.__version__,
        triton=installed("triton"),
        gossamer=installed("gossamer") or "not installed",
        commit=commit_of(Path(__file__).parent),
    )


def installed(package: str) -> str | None:
    """The version of an installed package, or None; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def commit_of(folder: Path) -> str | None:
    """The commit checked out in a folder of a repository, with "dirty" where the folder differs; None anywhere else."""
    try:
        if not _git(folder, "ls-files", "."):
            return None  # an environment, say, that happens to lie in somebody's repository
        commit, changes = _git(folder, "rev-parse", "--short", "HEAD"), _git(folder, "status", "--porcelain", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} dirty" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
