"""The picture: axes, lines and the star at the crossover, read back from the drawing itself."""

import pytest

from gossamer.bench.plot import save_plot

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
