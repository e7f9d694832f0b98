"""Context-parallel attention at a fixed number of tokens a process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gossamer import Causal, PerHead, Sinks, Strided, Window, attend
from gossamer.parallel import Shards, attend_by_heads, attend_shards
from gossamer.patterns import Pattern
from gossamer.training.traces import communication_in, traced

from .clock import seconds_each
from .figures import Figure, slowest

HEADS = ((12, 64), (16, 128))
TOKENS, SMALL_TOKENS = 262_144, 2_048
DOCUMENT_TOKENS = 32_768
"""A tenth of all tokens is global, so that work grows with the square of the sequence: no weak scaling is asked."""
LARGEST_ERROR = 0.01


def patterns(window: int) -> dict[str, Pattern]:
    """What is timed, by name."""
    near = Causal() & Window(window)
    return {
        f"window {window:,}": near,
        f"window {window:,} and 4 sinks": Causal() & (Window(window) | Sinks(4)),
        f"document, window {window:,}": PerHead([(near, 8), (Causal() & Strided(10), 4)]),
    }


def context_figures(device: torch.device, *, small: bool, traces: Path | None = None) -> Iterator[Figure]:
    """Forward, and forward and backward, of each pattern and width; by keys, and of windows by heads."""
    for heads, width in HEADS[: 1 if small else None]:
        for name, pattern in patterns(64 if small else 1024).items():
            document = name.startswith("document")
            if document and heads != 12:
                continue
            each = SMALL_TOKENS if small else DOCUMENT_TOKENS if document else TOKENS
            error = _error(pattern, heads, width, device)
            if error > LARGEST_ERROR:
                raise AssertionError(f"{name}, {heads} x {width}: gradients are {error:.1e} off")
            case = _Case(pattern, heads, width, each, device)
            for title, measured in case.figures(f"{name}, {heads} x {width}", traces):
                yield Figure(
                    "context", title, dist.get_world_size(), each * dist.get_world_size(), error=error, **measured
                )


class _Case:
    """Tensors of one process's tokens, and what is done with them."""

    def __init__(self, pattern: Pattern, heads: int, width: int, each: int, device: torch.device):
        generator = torch.Generator(device).manual_seed(dist.get_rank())
        q, k, v, self.grad_out = (_drawn(generator, heads, each, width, device) for _ in range(4))
        self.inputs = [x.requires_grad_() for x in (q, k, v)]
        self.pattern, self.device, self.shards = pattern, device, Shards.even(each * dist.get_world_size())

    def figures(self, name: str, traces: Path | None) -> Iterator[tuple[str, dict]]:
        """(case, what was measured)."""
        alone = self._both(lambda q, k, v: attend(q, k, v, self.pattern))
        by_keys = self._both(lambda q, k, v: attend_shards(q, k, v, self.pattern, self.shards))
        for (case, step), (_, lonely) in zip(by_keys, alone, strict=True):
            seconds, before = (seconds_each(one, self.device, steps=6) for one in (step, lonely))
            sent = self.shards.traffic.nbytes
            step()
            measured = {"seconds": seconds, "alone": before, "nbytes": self.shards.traffic.nbytes - sent}
            yield f"{name}: {case}", measured | self._exchange(step, f"{name} {case}", traces)
        if dist.get_world_size() > 1 and "sinks" not in name and "document" not in name:
            for case, step in self._both(lambda q, k, v: attend_by_heads(q, k, v, self.pattern, self.shards)):
                yield f"{name}: {case}, by heads", {"seconds": seconds_each(step, self.device, steps=3)}

    def _both(self, over: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[tuple[str, Callable[[], object]]]:
        def forward() -> None:
            with torch.no_grad():
                over(*self.inputs)

        def training() -> None:
            over(*self.inputs).backward(self.grad_out)
            for x in self.inputs:
                x.grad = None

        return [("forward", forward), ("forward and backward", training)]

    def _exchange(self, step: Callable[[], object], name: str, traces: Path | None) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        with tempfile.TemporaryDirectory() as folder:
            rank = dist.get_rank()
            path = Path(traces or folder, f"{name.replace(' ', '-').replace(',', '')}.rank-{rank}.json.gz")
            with traced(path, self.device):
                for _ in range(3):
                    step()
            found = communication_in(path)
        return {"exchanging": slowest(found.seconds / 3), "exposed": slowest(found.exposed_seconds / 3)}


def _drawn(generator: torch.Generator, heads: int, tokens: int, width: int, device: torch.device) -> Tensor:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.randn(1, tokens, heads, width, generator=generator, device=device, dtype=dtype).transpose(1, 2)


def _error(pattern: Pattern, heads: int, width: int, device: torch.device) -> float:
    """The largest error of output or gradients of a short sequence, against float64 in one process."""
    tokens = 3_000
    generator = torch.Generator(device).manual_seed(0)
    *inputs, grad_out = (_drawn(generator, heads, tokens, width, device) for _ in range(4))
    shards = Shards.even(tokens)
    own = slice(shards.first, shards.stop)
    exact = [x.double().requires_grad_() for x in inputs]
    out = attend(*exact, pattern, backend="tiled")
    out.backward(grad_out.double())
    mine = [x[:, :, own].clone().requires_grad_() for x in inputs]
    found = attend_shards(*mine, pattern, shards)
    found.backward(grad_out[:, :, own])
    pairs = [(found.detach(), out.detach()), *((a.grad, b.grad) for a, b in zip(mine, exact, strict=True))]
    return slowest(max(((a.double() - b[:, :, own]).norm() / b[:, :, own].norm()).item() for a, b in pairs))
