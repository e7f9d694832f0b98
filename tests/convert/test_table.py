"""What the tables and the picture say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gossamer import Causal, Sinks, Window
from gossamer.convert.assignment import Assignment, assign, tradeoff
from gossamer.convert.chart import save_chart
from gossamer.convert.measure import Measurement
from gossamer.convert.table import tables

CANDIDATES = (Causal() & Sinks(4), Causal() & Window(8), Causal())


@pytest.fixture
def chosen() -> Assignment:
    mass = np.array([[[0.9, 0.5, 1.0], [0.2, 0.95, 1.0]], [[0.1, 0.2, 1.0], [0.8, 0.85, 1.0]]])
    share = np.array([[0.1, 0.2, 1.0]] * 2)
    return assign(Measurement(CANDIDATES, mass, share, (2, 2), 64), 0.4)


def printed(chosen: Assignment, budgets: tuple[float, ...]) -> list[list[list[str]]]:
    """The cells of each table."""
    console = Console(width=200)
    found = []
    for table in tables(chosen, tradeoff(chosen.measured, budgets)):
        with console.capture() as capture:
            console.print(table)
        lines = capture.get().splitlines()
        found.append([[cell.strip() for cell in line.split("   ") if cell.strip()] for line in lines if line.strip()])
    return found


def test_the_tables_say_what_was_chosen_and_what_else_there_was(chosen: Assignment) -> None:
    assert chosen.choice.tolist() == [[0, 1], [2, 1]]
    candidates, layers, curve = printed(chosen, (0.05, 0.2, 0.4, 1.0))
    assert candidates[0] == ["Candidates, at 64 tokens"]
    assert candidates[-3][-4:] == ["10.00 %", "50.00 %", "10.00 %", "1"]
    assert layers[-3:] == [
        ["0", "1", "1", "15.00 %", "92.50 %", "90.00 %"],
        ["1", "1", "1", "60.00 %", "92.50 %", "85.00 %"],
        ["all", "1", "2", "1", "37.50 %", "92.50 %", "85.00 %"],
    ]
    budgets = [row[0] for row in curve[3:]]
    assert budgets == ["20.00 %", "40.00 % ←", "100.00 %"]
    assert curve[-1][1:] == ["100.00 %", "100.00 %", "100.00 %", "0.00 %"]


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_picture_is_in_the_format_of_its_name(
    chosen: Assignment, suffix: str, magic: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / f"trade-off.{suffix}"
    save_chart(chosen, path)
    assert path.read_bytes().startswith(magic)


def test_the_picture_names_the_patterns_that_were_chosen(chosen: Assignment, tmp_path: Path) -> None:
    import matplotlib

    path = tmp_path / "trade-off.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        save_chart(chosen, path)
    drawn = path.read_text()
    for said in ("share of dense pairs", "budget 0.4", "layer", "Causal() &amp; Window(size=8)"):
        assert said in drawn
