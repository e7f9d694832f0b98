"""A few processes that call one function together, as the ranks of a process group."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

GRACE = 5.0
"""Seconds that the others have, once a rank has failed, to fail too and say why."""


class RankFailed(AssertionError):
    """A rank raised, died or took too long; the message has what each of them said."""


def run_ranks(function: Callable[..., Any], world: int, *args: Any, seconds: float = 120.0) -> list[Any]:
    """What `function(*args)` returns in each of `world` processes, in the order of ranks.

    They have a default process group: NCCL with a GPU each where there are enough, gloo on the CPU otherwise.

    Args:
        function: Of a module, so that other processes find it; what it takes and returns is pickled.
        seconds: How long all may take.

    Raises:
        RankFailed: At least one of them did not return.
    """
    context = multiprocessing.get_context("forkserver")  # torch is imported once for all
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "gossamer.training.loop"])
    with TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(function, rank, world, folder, there, args, seconds))
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        try:
            said = _heard(pipes, seconds)
        finally:
            for process in processes:
                process.join(1.0)
                if process.is_alive():
                    process.kill()
                    process.join()
    if any(not done for done, _ in said):
        raise RankFailed("\n".join(f"rank {rank}: {what}" for rank, (done, what) in enumerate(said) if not done))
    return [result for _, result in said]


def on_gpus(world: int) -> bool:
    """Whether so many ranks have a GPU each."""
    return torch.cuda.device_count() >= world


def _heard(pipes: list[Connection], seconds: float) -> list[tuple[bool, Any]]:
    """(whether it returned, what it said) of each rank."""
    said: dict[int, tuple[bool, Any]] = {}
    end = time.monotonic() + seconds
    while len(said) < len(pipes) and (left := end - time.monotonic()) > 0:
        for pipe in wait([pipe for rank, pipe in enumerate(pipes) if rank not in said], left):
            rank = pipes.index(pipe)  # type: ignore[bad-argument-type]
            try:
                said[rank] = pipe.recv()  # type: ignore[missing-attribute]
            except EOFError:
                said[rank] = False, "died"
            if not said[rank][0]:
                end = min(end, time.monotonic() + GRACE)
    return [said.get(rank, (False, f"said nothing in {seconds:.0f} seconds")) for rank in range(len(pipes))]


def _rank(
    function: Callable[..., Any], rank: int, world: int, folder: str, pipe: Connection, args: Any, seconds: float
) -> None:
    torch.set_num_threads(1)
    try:
        if on_gpus(world):
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus(world) else "gloo",
            store=dist.FileStore(str(Path(folder, "store")), world),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=seconds),
        )
        pipe.send((True, function(*args)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send((False, traceback.format_exc()))
