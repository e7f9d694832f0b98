"""What the report shows of a model is what the model did."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gossamer import GPT2, GPT2Config, SparseAttentionConfig
from gossamer.report.collect import attention_figure, cost_figure, layer_captures, read_run
from gossamer.training import Summary

LENGTH, HEADS = 48, 3


def tiny(sparse: bool) -> GPT2:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64,
        context_size=LENGTH,
        n_layer=2,
        n_head=HEADS,
        n_embed=24,
        dropout=0.5,
        use_sparse_attention=sparse,
        sparse_config=SparseAttentionConfig(2, 1, window_size=8, min_window_size=8),
    )
    return GPT2(config)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(64, (1, LENGTH))


def dense_probabilities(model: GPT2, tokens: torch.Tensor) -> list[np.ndarray]:
    """[H, N, N] of each layer, by the textbook formula and the pattern's dense mask."""
    seen: list[tuple[Any, torch.Tensor]] = []

    def keep(attention: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((attention, inputs[0]))

    hooks = [block.attn.register_forward_pre_hook(keep) for block in model.eval().h]
    with torch.no_grad():
        model(tokens)
        layers = [attention.project(x)[:2] for attention, x in seen]
    for hook in hooks:
        hook.remove()
    mask = torch.ones(LENGTH, LENGTH).tril().bool()
    if model.config.use_sparse_attention:
        mask = torch.from_numpy(model.config.sparse_config.pattern(LENGTH).dense_mask(LENGTH))
    scores = [(q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf) for q, k in layers]
    return [part.softmax(-1)[0].detach().numpy() for part in scores]


@pytest.mark.parametrize("sparse", [True, False])
def test_maps_are_the_probabilities_of_the_models_own_forward(sparse: bool, tokens: torch.Tensor) -> None:
    model = tiny(sparse).train()
    figure = attention_figure(model, tokens, map(str, range(LENGTH)), cells=LENGTH)
    assert model.training, "the model is left as it was"
    assert figure.tokens[5] == "5"
    for layer, expected in zip(figure.layers, dense_probabilities(model, tokens), strict=True):
        np.testing.assert_allclose(layer.maps, expected, atol=1e-5)
        np.testing.assert_allclose(layer.mass.sum(-1), 1, atol=1e-4)


def test_each_head_carries_its_own_pattern(tokens: torch.Tensor) -> None:
    figure = attention_figure(tiny(sparse=True), tokens, [""] * LENGTH, cells=4)
    assert len(figure.patterns) == HEADS
    assert "Window" in figure.patterns[0] and figure.patterns[0] == figure.patterns[1]
    assert "Strided" in figure.patterns[2]
    assert figure.layers[0].maps.shape == (HEADS, 4, 4)


def test_no_hook_stays_behind(tokens: torch.Tensor) -> None:
    model = tiny(sparse=True)
    attention_figure(model, tokens, [""] * LENGTH, cells=4)
    with pytest.raises(ValueError, match="tokens reach"):
        attention_figure(model, tokens.repeat(1, 2), [""] * LENGTH, cells=4)
    assert all(not block.attn._forward_pre_hooks for block in model.h)


def test_captures_count_the_pairs_of_the_real_run(tokens: torch.Tensor) -> None:
    model = tiny(sparse=True)
    captures = layer_captures(model, tokens)
    mask = model.config.sparse_config.pattern(LENGTH).dense_mask(LENGTH)
    assert [capture.pairs for capture in captures] == [mask.sum()] * 2
    assert captures[0].window == model.config.sparse_config.window(LENGTH)
    assert captures[0].sparsity == pytest.approx(1 - mask.mean())
    assert layer_captures(tiny(sparse=False), tokens) == ()


def test_a_run_is_read_from_its_metrics(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0, "validation_loss": 4.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = Summary(10.0, 1000, 4.5, 99, 2, LENGTH)
    run = read_run("sparse", tmp_path, summary)
    assert run.training == ((1, 5.0), (2, 4.0))
    assert run.validation == ((2, 4.5),)
    assert run.name == "sparse"
    assert (run.tokens_per_second, run.peak_memory_bytes, run.parameters) == (10.0, 1000, 99)


class Results:
    """A benchmark whose sparse contender is the faster one from 700 tokens on."""

    def measurements(self, case: str) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(contender=name, length=length, seconds=length / 1e6, peak_bytes=length)
            for length in (1024, 512)
            for name in ("document", "flex", "sdpa")
        ]

    def crossover(self, case: str, contender: str) -> float | None:
        return 700.0 if contender == "document" else None


def test_a_benchmark_becomes_two_curves_by_rising_length() -> None:
    figure = cost_figure(Results(), "case", name="attention", dense="sdpa", sparse="document")
    assert (figure.name, figure.crossover) == ("attention", 700.0)
    assert [curve.name for curve in figure.curves] == ["dense", "sparse"]
    assert figure.curves[0].points == ((512, 512e-6, 512), (1024, 1024e-6, 1024))
