"""`gossamer doctor` prints every finding of the examination."""

from __future__ import annotations

from gossamer.cli.doctor import tables
from gossamer.doctor import Finding

from .conftest import Here


def test_the_machine_and_the_backends_are_listed(here: Here) -> None:
    done = here("doctor")
    assert done.returncode == 0
    assert "PyTorch" in done.stdout and "sliding window" in done.stdout
    assert "gossamer[peers]" in done.stdout


def test_a_table_for_each_topic() -> None:
    findings = [Finding("a", "x", "1"), Finding("a", "y", "2", "why"), Finding("b", "z", "3")]
    assert [(table.title, table.row_count) for table in tables(findings)] == [("a", 2), ("b", 1)]
