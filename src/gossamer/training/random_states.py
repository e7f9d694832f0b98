"""The states of all random number generators that a process draws from."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def random_states() -> dict[str, Tensor]:
    """The states of the generators of torch (on the CPU and on every GPU), of Python and of NumPy.

    GPUs are counted from the current one, so that a process finds its own again where it is given another.
    """
    states = {"cpu": torch.get_rng_state(), "python": _python_state(), "numpy": _numpy_state()}
    return states | {f"cuda:{place}": torch.cuda.get_rng_state(index) for place, index in enumerate(_gpus())}


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Give the generators the states that `random_states` read; GPUs that are not here are left out."""
    torch.set_rng_state(states["cpu"])
    version, _, _ = random.getstate()
    *words, has_gauss, gauss = states["python"].tolist()
    random.setstate((version, tuple(map(int, words)), gauss if has_gauss else None))
    *words, position, has_gauss, gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), int(position), int(has_gauss), gauss))
    for place, index in enumerate(_gpus()):
        if f"cuda:{place}" in states:
            torch.cuda.set_rng_state(states[f"cuda:{place}"], index)


def seed_random_states(seed: int, *, step: int, rank: int) -> None:
    """Give all generators states that follow from the three numbers, and differ where one of them does."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))
    random.seed(int.from_bytes(digest[8:16], "little"))
    np.random.seed(int.from_bytes(digest[16:20], "little"))


@contextmanager
def apart(seed: int) -> Iterator[None]:
    """Within the block all generators begin at `seed`; after it they are where they were before."""
    before = random_states()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        restore_random_states(before)


def _gpus() -> list[int]:
    """Every GPU that this process draws on, the current one first."""
    if not torch.cuda.is_available():
        return []
    count, current = torch.cuda.device_count(), torch.cuda.current_device()
    if dist.is_available() and dist.is_initialized():  # the others are other processes'
        return [current]
    return [(current + index) % count for index in range(count)]


def _python_state() -> Tensor:
    _, words, gauss = random.getstate()  # the words have 32 bits: float64 holds them exactly
    return torch.tensor([*words, gauss is not None, gauss or 0.0], dtype=torch.float64)


def _numpy_state() -> Tensor:
    _, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return torch.tensor([*words, position, has_gauss, gauss], dtype=torch.float64)
