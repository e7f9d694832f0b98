"""The table says what was measured, what was claimed, and why anyone is missing."""

import io

from rich.console import Console

from gossamer.bench.table import tables


def printed(results) -> str:
    console = Console(width=140, file=io.StringIO())
    console.print(*tables(results))
    return console.file.getvalue()


def line(text: str, *words: str) -> str:
    return next(row for row in text.splitlines() if all(word in row for word in words))


def test_measured_and_claimed_stand_side_by_side(results):
    text = printed(results)
    row = line(text, "4,096", "document")
    assert "4.19 ms (3.77–5.03)" in row
    assert "4.00x" in row and "16.0x" in row and "32.3x" in row
    assert "64.0 MiB" in row and "93.8 %" in row and "96.9 %" in row
    assert "claims" in text
    assert "12 heads × 64, window 256, the document's pattern, fp32, CPU threads: 2" in text


def test_nothing_is_claimed_for_others(results):
    text = printed(results)
    assert not any("32.3x" in line(text, "4,096", name) for name in ("naive", "window", "sdpa"))


def test_the_crossover_and_the_absent_are_named_below(results):
    text = printed(results)
    assert "window is faster than dense from 1,024 tokens on" in text
    assert "naive skipped: needs 192.0 GiB, allowed are 18.0 (--memory-gib) (at 65,536 tokens)" in text
    assert "document failed: 3 wrong pairs; first: head 0, query 9 sees key 1 (at 512, 1,024 tokens)" in text
    assert line(text, "flex").strip() == "flex skipped: runs on CUDA only"
