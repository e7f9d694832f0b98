"""A heading says what its case was, not what the configuration would have been for another one."""

from dataclasses import replace

import pytest

from gossamer.bench.config import TITLES, BenchConfig
from gossamer.bench.headings import PATTERNS, pattern_words, setup, shape_words, size_words
from gossamer.bench.results import DENSE, NAIVE, RIVALS, Results
from gossamer.machine import this_machine

from .conftest import timed

CONFIG = BenchConfig(tokens=65536, batch=8, heads=32, key_heads=8, head_width=128, precision="bf16", device="cuda")


def of(case: str, *contenders: str) -> Results:
    rows = tuple(replace(timed(name, 512, 1.0), case=TITLES[case]) for name in contenders)
    return Results(CONFIG, this_machine(), "2026-01-01", rows)


@pytest.mark.parametrize(
    ("case", "size"),
    [
        ("forward", "65,536 tokens in all"),
        ("training", "65,536 tokens in all"),
        ("launch", "batch 1"),
        ("decode", "batch 8"),
        ("model", "batch 8"),
    ],
)
def test_the_size_is_the_case_s_own(case, size):
    assert size_words(CONFIG, TITLES[case]) == size
    assert size_words(replace(CONFIG, tokens=None), TITLES[case]) == ("batch 1" if case == "launch" else "batch 8")


@pytest.mark.parametrize(
    ("case", "contenders", "words"),
    [
        ("forward", ("cudnn", "document", "flex-document"), "65,536 tokens in all, {}, the document's pattern, {}"),
        ("launch", ("sdpa", "window", "document"), "batch 1, {}, window 256, the document's pattern, {}"),
        ("decode", ("sdpa", "window+strided"), "batch 8, {}, window 256 + 1 key in 100, {}"),
        (
            "training",
            ("window+tokens", "fa4"),
            "65,536 tokens in all, {}, window 256 + 4 sinks + 64 tokens, window 256, {}",
        ),
        ("forward", ("sdpa", "naive"), "65,536 tokens in all, {}, {}"),
    ],
)
def test_only_patterns_that_were_there_are_named(case, contenders, words):
    assert setup(of(case, *contenders), TITLES[case]) == words.format("32:8 heads × 128", "bf16, cuda")


def test_whoever_does_not_see_everything_has_words_for_it():
    sparse = {*RIVALS, *(name for rivals in RIVALS.values() for name in rivals), "gpt2 sparse"} - {*DENSE, NAIVE}
    assert set(PATTERNS) == sparse
    assert pattern_words(CONFIG, "sdpa") == ""
    assert shape_words(replace(CONFIG, key_heads=None)) == "32 × 128"
