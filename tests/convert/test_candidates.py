"""What heads may get, and the exact price of it."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer import Causal, PerHead, RandomBlocks, Sinks, Strided, Window
from gossamer.convert.candidates import default_candidates, require_candidates, shares


@pytest.mark.parametrize(("context", "windows"), [(32, []), (64, []), (65, [64]), (2048, [64, 128, 256, 512, 1024])])
def test_windows_are_below_the_context_and_dense_is_last(context: int, windows: list[int]) -> None:
    candidates = default_candidates(context)
    assert [candidate for candidate in candidates[:-3]] == [Causal() & (Window(w) | Sinks(4)) for w in windows]
    assert candidates[-1] == Causal()


@pytest.mark.parametrize("window", [None, 7])
def test_a_share_counts_the_pairs_that_are_computed(window: int | None) -> None:
    candidates = (Causal() & (Window(5) | Sinks(2)), Window(5), Strided(10), RandomBlocks(8, 1, seed=0), Causal())
    causal = Causal().dense_mask(50)
    own = causal if window is None else (Causal() & Window(window)).dense_mask(50)
    expected = [(candidate.dense_mask(50) & own).sum() / causal.sum() for candidate in candidates]
    np.testing.assert_allclose(shares(candidates, 50, window), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        ((), "candidates is empty"),
        (("Causal()",), "candidates holds 'Causal\\(\\)'; give patterns"),
        ((PerHead([(Causal(), 2)]),), "differs between heads"),
    ],
)
def test_what_is_no_candidate_is_refused(candidates: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        require_candidates(candidates)
