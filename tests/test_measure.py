"""Memory and time as `gossamer.measure` sees them, against allocations of known size."""

import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from gossamer import measure
from gossamer.measure import MIB, ResidentMark, ResidentSamples, monitor_performance, peak_memory

SLACK = 24 * MIB  # allocator rounding, test runner threads


def touch(mebibytes):
    return np.ones(mebibytes * MIB // 8)


@pytest.fixture(params=["mark", "samples"])
def every_counter(request, monkeypatch):
    """Run the test with the kernel's high-water mark and with the portable sampler."""
    if request.param == "samples":
        monkeypatch.setattr(ResidentMark, "works", classmethod(lambda cls: False))
    elif not ResidentMark.works():
        pytest.skip("this system has no resettable high-water mark")


@pytest.mark.usefixtures("every_counter")
def test_an_allocation_inside_is_seen_even_when_freed_again():
    with peak_memory() as peak:
        held = touch(200)
        time.sleep(0.02)  # the sampler promises to see what lasts longer than its period
        del held
    assert abs(peak.bytes - 200 * MIB) < SLACK


@pytest.mark.usefixtures("every_counter")
def test_an_allocation_freed_before_is_not_counted():
    before = touch(200)
    del before
    with peak_memory() as peak:
        time.sleep(0.02)
    assert peak.bytes < SLACK


@pytest.mark.usefixtures("every_counter")
def test_an_allocation_that_lives_on_from_before_is_not_counted():
    before = touch(200)
    with peak_memory() as peak:
        inside = touch(50)
        time.sleep(0.02)
    assert before.nbytes + inside.nbytes == 250 * MIB
    assert abs(peak.bytes - 50 * MIB) < SLACK


@pytest.mark.skipif(sys.platform != "linux", reason="other allocators give memory back in their own ways")
def test_memory_that_the_allocator_kept_is_seen_when_it_is_used_again():
    warm = touch(16)
    del warm  # from now on glibc takes pieces of this size from its heap
    pieces = [touch(1) for _ in range(100)]
    barrier = touch(1)  # lives above them, so that the heap cannot shrink when they go
    del pieces
    with peak_memory() as peak:
        pieces = [touch(1) for _ in range(100)]
    assert barrier.size and len(pieces) == 100
    assert abs(peak.bytes - 100 * MIB) < SLACK


def test_an_inner_block_does_not_hide_the_peak_of_the_outer_one():
    with peak_memory() as outer:
        held = touch(120)
        del held
        with peak_memory() as inner:
            held = touch(40)
            del held
    assert abs(outer.bytes - 120 * MIB) < SLACK
    assert abs(inner.bytes - 40 * MIB) < SLACK


def test_bytes_can_be_read_while_the_block_runs_and_stay_fixed_after_it():
    with peak_memory() as peak:
        held = touch(60)
        during = peak.bytes
    assert abs(during - 60 * MIB) < SLACK
    final = peak.bytes
    held = [held, touch(100)]
    assert peak.bytes == final


def test_the_block_is_closed_when_it_raises():
    with pytest.raises(ZeroDivisionError), peak_memory():
        1 / 0  # noqa: B018
    assert measure._open_peaks == []


def test_torch_tensors_are_seen():
    torch = pytest.importorskip("torch")
    with peak_memory(torch.device("cpu")) as peak:
        torch.ones(100 * MIB // 4)
    assert abs(peak.bytes - 100 * MIB) < SLACK


def test_the_sampler_stops_its_thread():
    counter = ResidentSamples()
    counter.close()
    assert not counter._thread.is_alive()


def test_monitored_calls_return_their_value_and_remember_their_cost():
    @monitor_performance
    def work(seconds, *, mebibytes):
        """Work a little."""
        time.sleep(seconds)
        return touch(mebibytes).size

    assert work.last is None
    assert work(0.03, mebibytes=80) == 80 * MIB // 8
    assert 0.03 <= work.last.seconds < 1
    assert abs(work.last.peak_bytes - 80 * MIB) < SLACK
    assert work.__name__ == "work" and work.__doc__ == "Work a little."


def test_monitored_methods_still_receive_self():
    class Counting:
        calls = 0

        @monitor_performance
        def step(self):
            self.calls += 1
            return self.calls

    counting = Counting()
    assert (counting.step(), counting.step()) == (1, 2)
    assert Counting.step.last.seconds >= 0


def test_monitored_calls_are_logged_and_a_raising_call_changes_nothing(caplog):
    @monitor_performance
    def inverse(x):
        return 1 / x

    with caplog.at_level(logging.INFO, logger="gossamer.measure"):
        inverse(2)
    assert "inverse took" in caplog.text and "MiB" in caplog.text
    before = inverse.last
    with pytest.raises(ZeroDivisionError):
        inverse(0)
    assert inverse.last is before


def test_measuring_does_not_load_torch():
    code = "import sys, gossamer.measure as m\nwith m.peak_memory(): pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
