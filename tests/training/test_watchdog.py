"""A run that stands still ends within its timeout, and its report names who is waited for and where."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist

from gossamer.training.config import ParallelConfig, TrainConfig
from gossamer.training.watchdog import EXIT_CODE, FILE, Heartbeat, Watchdog, report, watched

from .stands_still import SIZE, SLEEPS_IN


def heartbeat(rank: int, count: int, **changes: object) -> Heartbeat:
    here = {
        "step": 5,
        "doing": "reads data",
        "seconds": 9.0,
        "at": "data.py:3 in batch",
        "host": "a",
        "pid": 100 + rank,
    }
    return Heartbeat(rank=rank, count=count, **{**here, "written": 1000.0, **changes})


def test_a_group_of_which_one_falls_asleep_ends_and_names_it(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    script, toml, timeout = Path(__file__).with_name("stands_still.py"), tmp_path / "config.toml", 5.0
    replace(tiny(), parallel=ParallelConfig(timeout_seconds=timeout)).to_toml(toml)
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    ranks = [start([sys.executable, script, str(rank), toml]) for rank in range(SIZE)]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [EXIT_CODE] * SIZE, said
    asleep, ended = float(said[1][0]), (tmp_path / "run" / FILE).stat().st_mtime
    assert timeout - 0.5 < ended - asleep < 1.5 * timeout + 2  # some heartbeats later, on a busy machine
    for rank, (_, errors) in enumerate(said):
        assert f"rank {rank} of {SIZE}: the run stands still for over {timeout:g} s" in errors
        assert f"rank 1: step {SLEEPS_IN}, goes forward, for" in errors
        assert f"rank 0: step {SLEEPS_IN}, goes backward, for" in errors  # where gradients are summed
        assert f"The others wait for rank 1: rank 1 is process {ranks[1].pid} on" in errors
    assert "in falls_asleep" in said[1][1]  # its own stack
    assert "in falls_asleep" in (tmp_path / "run" / FILE).read_text()


def test_one_process_ends_when_no_beat_comes(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    codes, timeout = [], 1.0
    watchdog = Watchdog(timeout, tmp_path, end=codes.append)
    thread = threading.Thread(target=watchdog.watch)
    thread.start()
    for step in range(1, 6):
        watchdog.beat("learns", step=step)
        time.sleep(timeout / 4)  # slow, and alive
    assert not codes
    thread.join(60)
    assert codes == [EXIT_CODE]
    said = capfd.readouterr().err
    assert "rank 0: step 5, learns, for 1." in said
    assert "test_one_process_ends_when_no_beat_comes" in said and "wait for" not in said
    assert said.splitlines()[1] in (tmp_path / FILE).read_text()


def test_a_run_that_goes_on_or_ends_is_left_alone(tmp_path: Path) -> None:
    threads = threading.active_count()
    with watched(2, tmp_path) as watchdog:
        for step in range(4):
            time.sleep(0.6)
            watchdog.beat("learns", step=step)
    assert threading.active_count() == threads
    assert not (tmp_path / FILE).exists()


def test_time_in_which_the_whole_process_was_stopped_does_not_count(tmp_path: Path) -> None:
    codes, looks = [], []
    watchdog = Watchdog(1.0, tmp_path, end=codes.append)

    def wait(pause: float) -> bool:
        looks.append(time.sleep(2.5 if not looks else pause))
        return len(looks) > 3

    watchdog._over.wait = wait
    watchdog.watch()
    assert not codes


def test_a_stall_elsewhere_ends_this_process_too(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    store, codes = dist.HashStore(), []
    mine = Watchdog(1.0, tmp_path, rank=0, size=3, store=store, end=codes.append)
    dist.PrefixStore("watchdog", store).set("stalled", "2")
    mine.watch()
    assert codes == [EXIT_CODE]
    assert "ranks 1-2: not heard of" in capfd.readouterr().err


def test_a_lost_store_and_a_lost_folder_change_nothing_but_the_report(tmp_path: Path, capfd) -> None:
    codes, store = [], dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watchdog = Watchdog(0.2, tmp_path / "gone", size=2, store=store, end=codes.append)
    del store
    watchdog.watch()
    assert codes == [EXIT_CODE]
    assert "rank 1: not heard of" in capfd.readouterr().err


def test_ranks_at_the_same_place_share_a_line_and_the_last_is_named() -> None:
    beats = [heartbeat(rank, 40, doing="sums gradients", at="x.py:1 in f") for rank in (0, 1, 2, 5)]
    text = report(beats[0], [*beats[1:], heartbeat(4, 39)], size=7, timeout=8, pause=0.4)
    first, *lines = text.strip().splitlines()
    assert first.startswith("rank 0 of 7: the run stands still for over 8 s (parallel.timeout_seconds). Process 100 on")
    assert lines == [
        "  rank 4: step 5, reads data, for 9.0 s, at data.py:3 in batch",
        "  ranks 0-2, 5: step 5, sums gradients, for 9.0 s, at x.py:1 in f",
        "  ranks 3, 6: not heard of",
        "  The others wait for rank 4: rank 4 is process 104 on a.",
    ]


def test_where_all_are_at_the_same_place_none_is_blamed_and_the_silent_are_called_so() -> None:
    beats = [heartbeat(0, 7), heartbeat(1, 7), heartbeat(2, 7, written=990.0)]
    lines = report(beats[0], beats[1:], size=3, timeout=8, pause=0.4).strip().splitlines()
    assert lines[1:] == [
        "  ranks 0-2: step 5, reads data, for 19.0 s, at data.py:3 in batch; rank 2 silent for up to 10.0 s"
    ]
