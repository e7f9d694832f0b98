"""Processes that are started again meet each other, and none of those before."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from gossamer.training.meeting import _asked, _told


def met(store: dist.Store, size: int) -> list[str]:
    """The name that each has of a start; the first comes last."""
    end = time.monotonic() + 20
    with ThreadPoolExecutor(size) as threads:
        others = [threads.submit(_asked, store, rank, end) for rank in range(1, size)]
        first = threads.submit(_told, store, size, end)
        return [each.result() for each in (first, *others)]


def test_all_of_a_start_have_one_name_and_each_start_another() -> None:
    """Also where one of the start before had come, and its first process had not."""
    store, names = dist.HashStore(), []
    for _ in range(5):
        with pytest.raises(RuntimeError, match=r"the first process did not come within parallel\.timeout_seconds"):
            _asked(store, 2, time.monotonic())
        (name,) = set(met(store, 4))
        names.append(name)
    assert len(set(names)) == 5


def test_the_first_says_who_is_missing() -> None:
    with pytest.raises(RuntimeError, match=r"processes \[1, 2\] did not come within"):
        _told(dist.HashStore(), 3, time.monotonic())
