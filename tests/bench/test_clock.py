"""Steps are timed to their end."""

import time

import pytest
import torch

from gossamer.bench.clock import clock_for, host_seconds


def test_the_cpu_clock_sees_the_whole_step():
    assert 0.02 <= host_seconds(lambda: time.sleep(0.02)) < 0.5
    assert clock_for(torch.device("cpu")) is host_seconds


@pytest.mark.gpu
def test_the_gpu_clock_waits_for_the_work_that_the_step_queued():
    clock = clock_for(torch.device("cuda"))
    x = torch.randn(8192, 8192, device="cuda")
    assert clock(lambda: x @ x @ x @ x) > 3 * clock(lambda: x @ x) / 2 > 1e-4
