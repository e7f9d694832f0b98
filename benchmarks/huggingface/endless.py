"""Text without end: what a token costs, and what the process holds, block after block."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from itertools import islice

import psutil
import torch
from torch import Tensor

from gossamer.generation_config import SamplingConfig
from gossamer.integrations.huggingface import stream

from .judge import TIMES, answer
from .models import Family, pattern_of, text

JUDGED = 64
"""Tokens at the beginning that are judged, most of which a GPU writes by replays."""

Block = tuple[float, int]
"""Seconds of a token, and bytes that are held when the block ends."""


def blocks(family: Family, prompt: int, size: int) -> Iterator[Block]:
    """Blocks of `size` tokens behind a random prompt, without end; the first is the warm-up and is left out.

    Bytes are those above what was held when the prompt was read; within a block the host waits for nothing.
    """
    device = family.setting.device
    gc.collect()  # what the gate leaves in cycles is not to go while memory is watched
    before = _held_bytes(device)
    tokens = _tokens(family, prompt)
    _write(tokens, size, device)
    while True:
        seconds = _write(tokens, size, device) / size
        yield seconds, max(0, _held_bytes(device) - before)


def fault(family: Family, prompt: int) -> str | None:
    """Whether one of the first tokens is further from the likeliest than rounding explains, by the plain formula."""
    chosen = torch.cat(list(islice(_tokens(family, prompt), JUDGED)))
    asked = torch.cat([text(family.setting, prompt)[0], chosen[:-1]])[None]
    right = answer(family, asked, pattern_of(family.setting.config), keep=JUDGED)
    short = right.exact.amax(dim=-1) - right.exact.gather(-1, chosen[:, None])[:, 0]
    limit = 2 * TIMES * (right.plain - right.exact).abs().max().item()
    worst = short.max().item()
    if worst <= limit:
        return None
    return f"token {int(short.argmax())} is {worst:.2e} less likely than another, rounding explains {limit:.2e}"


def _tokens(family: Family, prompt: int) -> Iterator[Tensor]:
    words = text(family.setting, prompt)[:1].tolist()
    return stream(family.compiled, words, SamplingConfig(max_new_tokens=None, temperature=0))


def _write(tokens: Iterator[Tensor], count: int, device: torch.device) -> float:
    """Wall time of so many tokens, from an idle machine to an idle machine."""
    _wait(device)
    start = time.perf_counter()
    for _ in islice(tokens, count):
        pass
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _held_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss
