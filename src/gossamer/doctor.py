"""What this machine has, and which backend each feature of the library will use on it, and why."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .config import SparseAttentionConfig
from .kernels import Problem, choose
from .machine import Machine, installed, this_machine
from .patterns import Causal, Dilated, Documents, Pattern, RandomBlocks, Sinks, Strided, Window
from .plan import plan

LENGTH, HEADS, WIDTH = 1024, 12, 64
LOCAL = Causal() & Window(256)
OPTIONAL = {
    "transformers": "Hugging Face models and checkpoints",
    "local-attention": "a peer in `gossamer bench`: pip install 'gossamer[peers]'",
}


@dataclass(frozen=True)
class Finding:
    """One row of the examination: what was looked at, what was found, and why it is so or what follows."""

    topic: str
    subject: str
    answer: str
    reason: str = ""


def examine() -> tuple[Finding, ...]:
    """The machine, the optional packages, and for each feature the backend that `attend` would pick."""
    machine = this_machine()
    device = torch.device("cuda" if machine.gpu else "cpu")
    return (*_machine(machine), *_packages(), *_backends(device))


def _machine(machine: Machine) -> Iterator[Finding]:
    rows = {
        "system": (machine.system, ""),
        "Gossamer": (machine.gossamer, ""),
        "Python": (machine.python, ""),
        "PyTorch": (machine.torch, f"CUDA {machine.cuda}" if machine.cuda else "built without CUDA"),
        "CPU": (machine.cpu, f"{machine.threads} threads used of {machine.cores} cores"),
        "memory": (f"{machine.memory_bytes / 2**30:.1f} GiB", ""),
        "GPU": _gpu(machine),
        "Triton": (machine.triton or "none", "" if machine.triton else "only GPU kernels need it"),
    }
    for subject, (answer, reason) in rows.items():
        yield Finding("machine", subject, answer, reason)


def _gpu(machine: Machine) -> tuple[str, str]:
    if machine.gpu is None or machine.gpu_memory_bytes is None:
        reason = "PyTorch sees no GPU" if machine.cuda else "this PyTorch was built without CUDA"
        return "none", f"{reason}; everything runs on the CPU"
    major, minor = torch.cuda.get_device_capability()
    memory = f"{machine.gpu_memory_bytes / 2**30:.0f} GiB"
    return machine.gpu, f"{memory}, compute capability {major}.{minor}"


def _packages() -> Iterator[Finding]:
    for package, use in OPTIONAL.items():
        yield Finding("optional packages", package, installed(package) or "not installed", use)


def _backends(device: torch.device) -> Iterator[Finding]:
    for feature, problem in features(device).items():
        yield choice(feature, problem)


def choice(feature: str, problem: Problem) -> Finding:
    """The backend that will run `problem`, with the reason of each one that stands before it and refuses."""
    chosen = choose(problem)
    reason = "; ".join(f"{name}: {refusal}" for name, refusal in chosen.refusals.items())
    return Finding("backends", feature, chosen.backend.name if chosen.backend else "none", reason or "first choice")


def features(device: torch.device) -> dict[str, Problem]:
    """A typical problem for each feature: every kind of pattern, and every option of `attend`, in turn."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    window = _problem(LOCAL, device, dtype)
    patterns = {name: _problem(pattern, device, dtype) for name, pattern in _patterns().items()}
    options = {
        "grouped-query heads": dataclasses.replace(window, key_heads=HEADS // 4),
        "head width 128": dataclasses.replace(window, width=128, value_width=128),
        "dropout": dataclasses.replace(window, dropout=0.1),
        "soft cap": dataclasses.replace(window, softcap=50.0),
        "learnable sinks": dataclasses.replace(window, has_sinks=True),
        "one new query against a cache": dataclasses.replace(window, plan=plan(LOCAL, 1, LENGTH, HEADS), lengths=True),
        "sequences within ends": dataclasses.replace(window, within=True),
        "runs made at run time": dataclasses.replace(
            window, plan=plan(Causal() | ~Causal(), LENGTH, LENGTH, HEADS), runs=True
        ),
    }
    dtypes = {
        f"{str(other).removeprefix('torch.')}": dataclasses.replace(window, dtype=other)
        for other in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    }
    return patterns | options | dtypes


def _patterns() -> dict[str, Pattern]:
    return {
        "sliding window": LOCAL,
        "the design document's pattern": SparseAttentionConfig().for_heads(HEADS).pattern(LENGTH),
        "dense causal": Causal(),
        "dilated window": Causal() & Dilated(64, 4),
        "strided columns": Causal() & Strided(16),
        "window and sinks": Causal() & (Window(256) | Sinks(4)),
        "random blocks": Causal() & RandomBlocks(64, 3, seed=0),
        "packed documents": Causal() & Documents((LENGTH // 2, LENGTH // 2)),
    }


def _problem(pattern: Pattern, device: torch.device, dtype: torch.dtype) -> Problem:
    return Problem(
        plan=plan(pattern, LENGTH, LENGTH, HEADS),
        device=device,
        dtype=dtype,
        batch=1,
        key_heads=HEADS,
        width=WIDTH,
        value_width=WIDTH,
        softcap=0.0,
        dropout=0.0,
        has_sinks=False,
    )
