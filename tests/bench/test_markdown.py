"""The page holds the figures of the results, and nothing that was not measured."""

from dataclasses import replace

import pytest

from gossamer.bench.floor import Ceilings, Work
from gossamer.bench.markdown import markdown, summary
from gossamer.bench.results import Results

from .conftest import timed


@pytest.fixture
def beside_peers(results) -> Results:
    """The window at 4,096 tokens takes 4.19 ms where its floor is 2.1 ms and FlexAttention takes 8.4 ms."""
    rows = [
        replace(o, work=Work(operations=4.2e9, bytes=1.0)) if (o.contender, o.length) == ("window", 4096) else o
        for o in results.outcomes
        if o.contender != "flex"
    ]
    flex = replace(timed("flex", 4096, 2e-9 * 4096 * 1024), setup_seconds=0.0123)
    return replace(results, outcomes=(*rows, flex), ceilings=Ceilings(operations=2e12, bytes=3e12))


def test_a_row_holds_time_rate_share_of_the_floor_and_the_best_rival(beside_peers):
    row = next(line for line in markdown(beside_peers).splitlines() if "| 4,096 | window" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:6] == ["4.19 ms (3.77–5.03)", "1", "50.1 %", "2.00x (flex)"]


def test_what_was_made_once_is_a_time_of_its_own(beside_peers):
    assert "| 12.3 ms |" in next(line for line in markdown(beside_peers).splitlines() if "| 4,096 | flex" in line)


def test_the_machines_ceilings_are_named(beside_peers):
    assert "a matrix product reached 2 TFLOP/s and a copy 3 TB/s" in markdown(beside_peers)


def test_columns_without_a_figure_and_ceilings_unknown_are_left_out(results):
    page = markdown(results)
    assert "setup" not in page and "of the floor" not in page and "TB/s" not in page
    assert "- flex skipped: runs on CUDA only" in page


def test_tables_are_whole(beside_peers):
    for page in (markdown(beside_peers), summary([beside_peers])):
        widths = [line.count("|") for line in page.splitlines() if line.startswith("|")]
        assert len(widths) > 3 and len(set(widths)) == 1


def test_the_summary_names_our_own_and_their_best_rival(beside_peers):
    lines = summary([beside_peers]).splitlines()
    assert (
        "| window 256, 12 × 64, 4,096 tokens, attention forward | 4.19 ms | 1 | 50 % | flex, 8.39 ms | 2.00x |" in lines
    )
    assert not any("naive" in line or line.startswith("| sdpa") for line in lines)
