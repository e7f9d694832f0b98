"""Longformer's language models: the schedules of the paper's table 12."""

from itertools import pairwise

import pytest

from gossamer.config import longformer_lm
from gossamer.config.longformer_lm import doubling_windows


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(("phase", "bottom", "top"), [(1, 32, 512), (2, 64, 1024), (3, 128, 2048), (5, 512, 8192)])
def test_windows_grow_from_the_bottom_to_the_top_and_double_from_phase_to_phase(size, phase, bottom, top) -> None:
    windows = longformer_lm(size, phase=phase).windows
    assert (windows[0], windows[-1]) == (bottom, top)
    assert list(windows) == sorted(windows)
    assert {b // a for a, b in pairwise(windows)} == {1, 2}


def test_the_mean_window_is_that_of_the_paper_s_ablation() -> None:
    """The paper compares with a fixed window of 230, "the average of" its increasing ones."""
    windows = longformer_lm("small", phase=1).windows
    assert sum(windows) / len(windows) == pytest.approx(230, abs=1)


def test_two_heads_of_the_upper_layers_are_dilated() -> None:
    small, large = longformer_lm("small"), longformer_lm("large")
    assert small.dilations == (1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3)
    assert large.dilations == (1,) * 20 + (2,) * 5 + (3,) * 5
    assert small.dilated_heads == large.dilated_heads == 2


@pytest.mark.parametrize(("size", "layers", "dropout"), [("small", 12, 0.2), ("large", 30, 0.4)])
def test_the_shapes_are_the_paper_s(size, layers, dropout) -> None:
    config = longformer_lm(size)
    assert (config.n_layer, config.n_head, config.n_embed, config.dropout) == (layers, 8, 512, dropout)
    assert config.context_size >= 32_256  # that of the evaluation
    assert not config.use_sparse_attention and config.positions == "rotary"


REFUSED = [
    (lambda: longformer_lm("medium"), r"size is 'medium'; give one of small, large"),
    (lambda: longformer_lm("small", phase=6), r"phase is 6; give at most 5"),
    (lambda: longformer_lm("small", phase=0), r"phase is 0; .* at least 1"),
    (lambda: doubling_windows(12, least=32, most=500), r"most is 500; give 32 times a power of two, as 512"),
    (lambda: doubling_windows(4, least=32, most=512), r"n_layer is 4; .* at least 5 layers"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
