"""A bar in a terminal, plain lines anywhere else."""

import io

from rich.console import Console

from gossamer.training.progress import progress


def row(step: int, **more: float) -> dict[str, float]:
    return {
        "step": step,
        "loss": 2.5,
        "learning_rate": 1e-3,
        "tokens_per_second": 1234.5,
        "peak_memory_bytes": 2**21,
        **more,
    }


def shown(*, terminal: bool, done: int = 0) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with progress(8, done=done, every=3, console=console) as show:
        for step in range(done + 1, 9):
            show(row(step, **({"validation_loss": 2.25} if step == 5 else {})))
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
