"""The backends named beside a measurement are those that `attend` picks for the call that was timed."""

from dataclasses import replace

import pytest
import torch

from gossamer.bench import backends as module
from gossamer.bench.backends import Backends, decode_backends, forward_backends, training_backends
from gossamer.bench.config import BenchConfig
from gossamer.bench.driver import run
from gossamer.bench.setting import Setting, decide
from gossamer.patterns import Causal, Window

WINDOW = Causal() & Window(16)
CONFIG = BenchConfig(heads=4, key_heads=2, head_width=8, window=16, batch=3, device="cpu", threads=1)


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """Shapes of q, k and lengths of every question that `explain` is asked."""
    questions, explain = [], module.explain

    def noted(q, k, v, pattern, lengths=None):
        questions.append((tuple(q.shape), tuple(k.shape), lengths is not None))
        return explain(q, k, v, pattern, lengths=lengths)

    monkeypatch.setattr(module, "explain", noted)
    return questions


def test_the_question_has_the_shapes_of_the_measured_call(asked):
    setting = decide(CONFIG)
    assert training_backends(setting, WINDOW, 64) == Backends("tiled", "tiled")
    assert forward_backends(Setting(replace(setting.config, tokens=256)), WINDOW, 64) == Backends("tiled")
    assert decode_backends(setting, WINDOW, 64) == Backends("tiled")
    square, together, one = (3, 4, 64, 8), (4, 4, 64, 8), (3, 4, 1, 8)
    assert [q for q, _, _ in asked] == [square, together, one]
    assert [k for _, k, _ in asked] == [(3, 2, 64, 8), (4, 2, 64, 8), (3, 2, 64, 8)]
    assert [lengths for _, _, lengths in asked] == [False, False, True]


def test_every_measurement_of_ours_names_them_and_no_other_does():
    cases = ("forward", "training", "launch", "decode", "model")
    contenders = ("sdpa", "naive", "window", "window+strided")
    config = replace(CONFIG, key_heads=None, lengths=(64,), cases=cases, contenders=contenders, repeats=1)
    model = replace(config.model, lengths=(64,), layers=1, vocabulary=64)
    results = run(replace(config, model=model))
    named = {(m.case, m.contender): m.backends for case in results.cases for m in results.measurements(case)}
    both, alone = Backends("tiled", "tiled"), Backends("tiled")
    for (case, contender), found in named.items():
        ours = contender in ("window", "window+strided", "gpt2 sparse")
        assert found == ((both if "backward" in case or "GPT-2" in case else alone) if ours else None)
    assert len(named) == 4 + 4 + 4 + 3 + 2


@pytest.mark.parametrize(
    ("backends", "words"),
    [
        (Backends("decode"), "decode"),
        (Backends("hopper", "hopper"), "hopper"),
        (Backends("dense", "triton"), "dense, backward triton"),
    ],
)
def test_they_read_as_one_word_where_they_are_one(backends, words):
    assert str(backends) == words


@pytest.mark.gpu
def test_on_a_gpu_decoding_is_what_decodes():
    setting, held = decide(replace(CONFIG, device="cuda", head_width=64)), torch.cuda.memory_allocated()
    assert decode_backends(setting, WINDOW, 4096) == Backends("decode")
    assert torch.cuda.memory_allocated() < held + 2**20
