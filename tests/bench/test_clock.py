"""Steps are timed to their end."""

import time

import pytest
import torch

from gossamer.bench.clock import clock_for, host_seconds, launch_clock_for, wall_seconds


def test_the_cpu_clock_sees_the_whole_step():
    assert 0.02 <= host_seconds(lambda: time.sleep(0.02)) < 0.5
    assert clock_for(torch.device("cpu")) is host_seconds
    assert launch_clock_for(torch.device("cpu")) is host_seconds
    assert 0.02 <= wall_seconds(lambda: time.sleep(0.02), torch.device("cpu")) < 0.5


@pytest.mark.gpu
def test_the_gpu_clock_waits_for_the_work_that_the_step_queued():
    clock = clock_for(torch.device("cuda"))
    x = torch.randn(8192, 8192, device="cuda")
    assert clock(lambda: x @ x @ x @ x) > 3 * clock(lambda: x @ x) / 2 > 1e-4


@pytest.mark.gpu
def test_a_launch_is_over_before_its_work():
    device = torch.device("cuda")
    x = torch.randn(8192, 8192, device="cuda")
    launch = launch_clock_for(device)
    launch(lambda: x @ x)
    assert launch(lambda: x @ x @ x @ x) < wall_seconds(lambda: x @ x @ x @ x, device) / 10
