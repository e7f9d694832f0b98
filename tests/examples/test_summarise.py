"""The summariser learns which sentence is marked, and nothing sees a word that is still to be written."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch


@pytest.fixture
def small(script: ModuleType) -> object:
    return script.Summarise(250, 3, marked=1, words=1, vocabulary=8, window=2, width=32, batch=16)


def test_the_marked_sentence_is_found(script: ModuleType, small: object) -> None:
    right, lead = script.main(small)
    assert 0.2 < lead < 0.5, "one sentence in three is the first"
    assert right > 0.9


def test_the_summary_is_the_marked_sentences(script: ModuleType) -> None:
    asked = script.Summarise(sentences=5, marked=2, words=3, vocabulary=20)
    for document, summary in zip(*asked.drawn(20), strict=True):
        sentences = document.unflatten(0, (5, 4)).tolist()
        marked = [rest for begin, *rest in sentences if begin == script.MARKED]
        assert marked == summary.unflatten(0, (2, 3)).tolist()
        assert {begin for begin, *_ in sentences} == {script.PLAIN, script.MARKED}


def test_no_logit_sees_a_word_to_come(script: ModuleType) -> None:
    """Neither by the summary nor by way of the document."""
    asked = script.Summarise(sentences=4, marked=2, words=3, vocabulary=20, window=30)
    torch.manual_seed(0)
    model, (document, summary) = script.Summariser(asked), asked.drawn(2)
    summary = summary[:, :-1]
    other = summary.clone()
    other[:, 3:] = other[:, 3:].flip(1)
    before, after = model(document, summary), model(document, other)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4] - before[:, 4]).abs().max() > 1e-3
