"""Exposed time is what intervals say, and a trace of real processes shows what was hidden and what was not."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from gossamer.training.traces import STEP, communication_in, length, trace_of, traced, union, without

from .traced_step import EXPOSED, HIDDEN, SIZE


def moments(intervals: list[tuple[int, int]]) -> set[int]:
    return {moment for start, end in intervals for moment in range(start, end)}


def test_unions_and_differences_are_those_of_their_moments() -> None:
    draws = random.Random(0)
    for _ in range(500):
        some, others = (
            [(start, start + draws.randrange(8)) for start in draws.choices(range(40), k=draws.randrange(8))]
            for _ in range(2)
        )
        a, b = union(some), union(others)
        assert moments(a) == moments(some) and all(one[1] < two[0] for one, two in pairwise(a))
        assert moments(without(a, b)) == moments(some) - moments(others)
        assert length(without(a, b)) == len(moments(some) - moments(others))


def written(path: Path, *events: tuple[str, str, int, int, int]) -> Path:
    """A trace of such (category, name, thread, start, end) in microseconds."""
    shown = [{"ph": "X", "cat": c, "name": n, "tid": t, "ts": a, "dur": b - a} for c, n, t, a, b in events]
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": [{"ph": "M", "name": "process_name"}, *shown]}, file)
    return path


def test_on_a_gpu_kernels_hide_what_nccl_does_and_operators_do_not(tmp_path: Path) -> None:
    trace = written(
        tmp_path / "gpu.json.gz",
        ("user_annotation", STEP, 1, 100, 1100),
        ("gpu_user_annotation", STEP, 7, 100, 1100),
        ("cpu_op", "aten::mm", 1, 100, 1100),  # only launches
        ("user_annotation", "nccl:all_reduce", 1, 0, 1000),
        ("kernel", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 20, 50, 300),  # from 100 on
        ("kernel", "ncclDevKernel_SendRecv", 21, 600, 700),
        ("kernel", "ampere_sgemm", 7, 150, 250),
        ("kernel", "triton_fused", 8, 200, 280),
        ("kernel", "at::cuda::(anonymous namespace)::spin_kernel(long)", 7, 600, 650),  # idles, for NCCL to begin
        ("gpu_memcpy", "Memcpy DtoD", 7, 600, 700),
    )
    spent = communication_in(trace)
    assert spent.seconds == pytest.approx(300e-6)
    assert spent.exposed_seconds == pytest.approx((50 + 20 + 100) * 1e-6)


def test_on_a_cpu_operators_outside_gloo_hide_it(tmp_path: Path) -> None:
    trace = written(
        tmp_path / "cpu.json.gz",
        ("user_annotation", STEP, 1, 0, 1000),
        ("user_annotation", "gloo:all_reduce", 2, 100, 500),
        ("cpu_op", "aten::div_", 2, 400, 500),  # its own
        ("cpu_op", "c10d::allreduce_", 1, 100, 500),
        ("cpu_op", "gossamer::attend", 1, 150, 200),
        ("cpu_op", "aten::mm", 1, 450, 600),
    )
    assert communication_in(trace) == pytest.approx((400e-6, 300e-6))


def test_a_real_step_of_two_processes_hides_what_was_computed_meanwhile(tmp_path: Path) -> None:
    script = Path(__file__).with_name("traced_step.py")
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, script, str(rank), tmp_path], env=settings) for rank in range(SIZE)]
    assert [rank.wait(120) for rank in ranks] == [0] * SIZE
    waiting, slow = (communication_in(trace_of(tmp_path, 3, rank)) for rank in range(SIZE))
    assert waiting.seconds > 0.99 * (HIDDEN + EXPOSED)
    assert 0.99 * EXPOSED < waiting.exposed_seconds < waiting.seconds - 0.5 * HIDDEN
    assert slow.seconds < EXPOSED  # it came last, and waited for nobody


def test_one_process_without_exchange_spends_nothing(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, 12, 0)
    with traced(trace, torch.device("cpu")):
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert trace.name == "step-00000012.rank-0.json.gz"
    assert communication_in(trace) == (0.0, 0.0)
    with gzip.open(trace, "rt") as file:
        assert "aten::mm" in {event.get("name") for event in json.load(file)["traceEvents"]}


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog) -> None:
    (tmp_path / "traces").write_text("a file where the folder should be")
    with traced(trace_of(tmp_path, 1, 0), torch.device("cpu")):
        torch.ones(2)
    assert "the trace could not be written to" in caplog.text
