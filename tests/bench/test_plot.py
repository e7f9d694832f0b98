"""The picture: axes, lines and the star at the crossover, read back from the drawing itself."""

import html
from dataclasses import replace

import pytest

from gossamer.bench.floor import Ceilings, Work
from gossamer.bench.plot import save_bars, save_plot
from gossamer.bench.results import Measurement

from .conftest import CASE


def test_the_picture_is_written_and_names_what_it_shows(results, tmp_path):
    save_plot(results, tmp_path / "deep" / "bench.svg")
    drawing = (tmp_path / "deep" / "bench.svg").read_text()
    for words in (CASE, "window (★ faster than dense from 1,024 tokens on)", "peak memory, MiB", "4,096"):
        assert words in drawing, words


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_suffix_chooses_the_format(results, tmp_path, suffix):
    save_plot(results, tmp_path / f"bench.{suffix}")
    start = (tmp_path / f"bench.{suffix}").read_bytes()[:4]
    assert start == {"png": b"\x89PNG", "pdf": b"%PDF"}[suffix]


def test_bars_hold_every_contender_at_the_longest_length_and_its_floor(results, tmp_path):
    rows = tuple(
        replace(o, work=Work(operations=4096e3, bytes=0.0)) if isinstance(o, Measurement) else o
        for o in results.outcomes
    )
    results = replace(results, outcomes=rows, ceilings=Ceilings(1e12, 1e12))
    save_bars([results, results], tmp_path / "deep" / "bars.svg")
    drawing = html.unescape((tmp_path / "deep" / "bars.svg").read_text())
    setup = "batch 1, 12 heads × 64, window 256, the document's pattern, fp32, CPU threads: 2"
    assert drawing.count(f"<!-- {CASE}, 4,096 tokens ({setup}) -->") == 2
    assert drawing.count("<!--  4.19 ms -->") == 4 and drawing.count("<!--  67.1 ms -->") == 2
