"""`gossamer show` draws the pattern it was given and prints its plan."""

from __future__ import annotations

from .conftest import Here


def test_the_drawing_and_the_plan(here: Here) -> None:
    done = here("show", "Causal() & Window(2)", "--length", "4", "--heads", "3")
    assert done.returncode == 0
    assert "│██      │\n│████    │\n│  ████  │\n│    ████│" in done.stdout
    assert "4 queries × 4 keys, 3 heads: 21 visible pairs" in done.stdout
    assert "Band" in done.stdout


def test_a_long_sequence_is_drawn_small(here: Here) -> None:
    done = here("show", "Causal() & Strided(7)", "--length", "1000000", "--cells", "10")
    assert done.returncode == 0
    drawing = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert len(drawing) == 10


def test_per_head_patterns_bring_their_heads(here: Here) -> None:
    done = here("show", "PerHead([(Causal(), 2), (Causal() & Window(3), 4)])", "--length", "8")
    assert done.returncode == 0
    assert "6 heads" in done.stdout
