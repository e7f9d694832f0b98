"""The metrics file holds each step once, also after a crash, a resume or a full disk."""

import errno
import os
from typing import Any

import pytest

from gossamer.training.metrics import Summary, metrics_log, read_metrics


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 1 / 3,
        "tokens_per_second": 100.0 + step,
        "peak_memory_bytes": 10 * step,
        **more,
    }


def test_rows_come_back_exactly(tmp_path) -> None:
    rows = [row(1), row(2, validation_loss=0.1 + 0.2)]
    with metrics_log(tmp_path / "m.jsonl", step=0) as record:
        for one in rows:
            record(one)
        assert read_metrics(tmp_path / "m.jsonl") == rows  # readable while it is being written
    assert read_metrics(tmp_path / "m.jsonl") == rows


def test_a_resumed_file_holds_each_step_once(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    with metrics_log(path, step=0) as record:
        for step in range(1, 6):
            record(row(step))
    with metrics_log(path, step=3) as record:
        record(row(4, again=True))
    assert [one["step"] for one in read_metrics(path)] == [1, 2, 3, 4]
    assert read_metrics(path)[-1]["again"]


def test_a_line_cut_short_is_dropped(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    with metrics_log(path, step=0) as record:
        record(row(1))
        record(row(2))
    os.truncate(path, path.stat().st_size - 3)
    assert read_metrics(path) == [row(1)]
    with metrics_log(path, step=2) as record:
        record(row(3))
    assert [one["step"] for one in read_metrics(path)] == [1, 3]


def test_a_broken_line_is_named(tmp_path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl: line 2 is not JSON"):
        read_metrics(tmp_path / "m.jsonl")


def test_a_number_that_json_lacks_is_refused(tmp_path) -> None:
    with (
        metrics_log(tmp_path / "m.jsonl", step=0) as record,
        pytest.raises(ValueError, match="not JSON compliant"),
    ):
        record(row(1, gradient_norm=float("nan")))


def test_a_full_disk_is_one_clear_message_and_the_rows_before_stay(tmp_path, file_size_limit) -> None:
    path = tmp_path / "m.jsonl"
    with metrics_log(path, step=0) as record:
        record(row(1))
        with file_size_limit(path.stat().st_size + 5), pytest.raises(OSError) as caught:
            record(row(2))
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert "no room for the metrics of step 2; make some, then resume" in str(caught.value)
    assert read_metrics(path) == [row(1)]


def test_a_summary_is_the_run_in_a_few_numbers() -> None:
    rows = [row(step) for step in range(1, 14)]
    rows[3]["validation_loss"], rows[9]["validation_loss"] = 3.0, 2.0
    rows[0]["tokens_per_second"] = 1e9
    summary = Summary.of(rows, parameters=7, context=16)
    assert summary == Summary(
        tokens_per_second=109.5,  # the median of steps 6 to 13
        peak_memory_bytes=130,
        validation_loss=2.0,
        parameters=7,
        steps=13,
        context=16,
    )
    assert Summary.of(rows[:4], parameters=7, context=16).tokens_per_second == 103.5
