"""How far a run has come: a bar in a terminal, plain lines anywhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .metrics import Row

SAID = {"validation_loss": "validation", "indexer_loss": "indexers", "recall": "recall"}
"""What is shown where it is known, besides what always is."""


@contextmanager
def progress(steps: int, *, done: int, every: int, console: Console | None = None) -> Iterator[Callable[[Row], None]]:
    """A function that shows a step's row, for as long as the block lasts.

    Args:
        done: Steps done before this block.
        every: Steps between two lines where there is no terminal; evaluations and steps that were left out are always
            shown.
        console: Where to; None is the standard error stream.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda row: _print(row, steps, every, console)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task("", total=steps, completed=done)

        def show(row: Row) -> None:
            if "skipped" in row:
                _print(row, steps, 1, bar.console)  # above the bar, to stay
            bar.update(task, completed=row["step"], description=_described(row))

        yield show


def _print(row: Row, steps: int, every: int, console: Console) -> None:
    if row["step"] % every == 0 or row["step"] in (1, steps) or "validation_loss" in row or "skipped" in row:
        console.print(f"step {row['step']}/{steps}  {_described(row)}", markup=False, highlight=False, soft_wrap=True)


def _described(row: Row) -> str:
    parts = [f"left out: {row['skipped']}"] if "skipped" in row else [f"loss {row['loss']:.4f}"]
    parts += [f"{said} {row[name]:.4f}" for name, said in SAID.items() if row.get(name) is not None]
    parts += [
        f"learning rate {row['learning_rate']:.2e}",
        f"{row['tokens_per_second']:,.0f} tokens/s",
        f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
    ]
    if row.get("mfu") is not None:
        parts.append(f"{row['mfu']:.1%} of the peak")
    return "  ".join(parts)
