"""A bar in a terminal, plain lines anywhere else."""

import io
from typing import Any

from rich.console import Console

from gossamer.training.progress import progress


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 2.5,
        "learning_rate": 1e-3,
        "tokens_per_second": 1234.5,
        "peak_memory_bytes": 2**21,
        **more,
    }


LEFT_OUT = {"loss": None, "skipped": "loss is nan"}


def shown(*, terminal: bool, done: int = 0, seventh: dict | None = None) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with progress(8, done=done, every=3, console=console) as show:
        for step in range(done + 1, 9):
            more = {5: {"validation_loss": 2.25}, 7: seventh or {}}
            show(row(step, **more.get(step, {})))
    return stream.getvalue()


def test_lines_come_now_and_then() -> None:
    lines = shown(terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == ["1/8", "3/8", "5/8", "6/8", "8/8"]
    assert lines[0] == "step 1/8  loss 2.5000  learning rate 1.00e-03  1,234 tokens/s  2 MiB"
    assert "validation 2.2500" in lines[2]
    assert not any("\x1b" in line for line in lines)


def test_a_terminal_gets_a_bar() -> None:
    text = shown(terminal=True, done=4)
    assert "8/8" in text
    assert "loss 2.5000" in text
    assert "\x1b[" in text


def test_a_step_that_is_left_out_is_always_a_line_of_its_own() -> None:
    lines = shown(terminal=False, seventh=LEFT_OUT).splitlines()
    assert [line.split()[1] for line in lines] == ["1/8", "3/8", "5/8", "6/8", "7/8", "8/8"]
    assert lines[4].startswith("step 7/8  left out: loss is nan  learning rate")
    assert "step 7/8  left out: loss is nan" in shown(terminal=True, seventh=LEFT_OUT)


def test_what_share_of_the_device_is_used_is_shown_where_it_is_known() -> None:
    lines = shown(terminal=False, seventh={"mfu": None}).splitlines()
    assert not any("peak" in line for line in lines)
    assert (
        shown(terminal=False, seventh={"mfu": 0.4567, "validation_loss": 1.0})
        .splitlines()[4]
        .endswith("45.7% of the peak")
    )
