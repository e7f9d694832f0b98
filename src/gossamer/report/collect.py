"""Gathers what a report shows from a run's folder, a trained model and a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..attention import attend
from ..generation import stream
from ..generation_config import SamplingConfig
from ..models.gpt2 import GPT2
from ..nn.self_attention import SelfAttention
from ..plan import shortened
from ..tokenizer import load_tokenizer
from ..training.checkpoint_folders import latest
from ..training.journal import TOKENIZER
from ..training.metrics import FILE as METRICS
from ..training.metrics import Summary, read_metrics
from .data import AttentionFigure, CostCurve, CostFigure, LayerAttention, LayerCapture, Run, Sample
from .maps import attention_maps, distance_edges, mass_by_distance


class Measured(Protocol):
    """What a curve of cost needs of a benchmark's measurement."""

    @property
    def contender(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def peak_bytes(self) -> int: ...


class Benchmark(Protocol):
    """What a figure of cost needs of a benchmark's results."""

    def measurements(self, case: str) -> Sequence[Measured]: ...
    def crossover(self, case: str, contender: str) -> float | None: ...


def read_run(name: str, folder: str | Path, summary: Summary) -> Run:
    """The curves in a run's metrics beside its summary.

    Raises:
        ValueError: The metrics are not JSON lines.
    """
    rows = read_metrics(Path(folder, METRICS))
    curve = {
        kind: tuple((row["step"], row[kind]) for row in rows if row.get(kind) is not None)
        for kind in ("loss", "validation_loss")
    }
    return Run(
        name=name,
        training=curve["loss"],
        validation=curve["validation_loss"],
        tokens_per_second=summary.tokens_per_second,
        peak_memory_bytes=summary.peak_memory_bytes,
        validation_loss=summary.validation_loss,
        parameters=summary.parameters,
    )


def cost_figure(results: Benchmark, case: str, *, name: str, dense: str, sparse: str) -> CostFigure:
    """Two contenders of a benchmark's case against each other, and where they cross.

    Args:
        name: What was measured, for the reader.
        dense: The contender that the figure calls dense.
        sparse: The one it calls sparse.
    """
    measured = sorted(results.measurements(case), key=lambda m: m.length)
    curves = tuple(
        CostCurve(kind, tuple((m.length, m.seconds, m.peak_bytes) for m in measured if m.contender == contender))
        for kind, contender in (("dense", dense), ("sparse", sparse))
    )
    return CostFigure(name, curves, results.crossover(case, sparse))


def written_sample(run: str | Path, prompt: str, sampling: SamplingConfig) -> Sample:
    """What the newest model in a run's folder writes after `prompt`.

    Raises:
        FileNotFoundError: The run has no checkpoint.
        ValueError: The prompt and the new tokens do not fit in the model's context.
    """
    model, tokenizer = GPT2.load(latest(run)), load_tokenizer(Path(run, TOKENIZER))
    tokens = torch.tensor([tokenizer.encode(prompt)])
    new = [int(token) for token in stream(model, tokens, sampling)]
    drawn = [f"{name} {value}" for name, value in asdict(sampling).items() if value not in (None, ())]
    return Sample(f"{Path(run).name} model, {', '.join(drawn)}", prompt, tokenizer.decode(new))


def attention_figure(
    model: GPT2, tokens: Int64[Tensor, "B N"], texts: Iterable[str], *, cells: int = 64
) -> AttentionFigure:
    """Where each head of `model` looks while it reads `tokens`; nothing n×n is made.

    Args:
        texts: The text of each token of the first sequence, for the reader.
    """
    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    layers: list[LayerAttention] = []
    hooks = [
        attention.register_forward_pre_hook(
            lambda module, inputs: layers.append(layer_attention(module, inputs[0], cells=cells))
        )
        for attention in attentions
    ]
    try:
        _read(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    length, heads = tokens.shape[1], model.config.n_head
    groups = attentions[0].pattern(length).groups(heads)
    patterns = tuple(shortened(group) for first, last, group in groups for _ in range(first, last))
    return AttentionFigure(tuple(texts), patterns, distance_edges(length), tuple(layers))


@torch.no_grad()
def layer_attention(attention: SelfAttention, x: Float[Tensor, "B N E"], *, cells: int = 64) -> LayerAttention:
    """Where the heads of one attention layer look while it is given `x`."""
    q, k, v = attention.project(x)
    pattern = attention.pattern(x.shape[1])
    _, lse = attend(q, k, v, pattern, return_lse=True)
    maps = attention_maps(q, k, lse, pattern=pattern, cells=cells)
    mass = mass_by_distance(q, k, lse, pattern=pattern, edges=distance_edges(x.shape[1]))
    return LayerAttention(maps.cpu().numpy(), mass.cpu().numpy())


def layer_captures(model: GPT2, tokens: Int64[Tensor, "B N"]) -> tuple[LayerCapture, ...]:
    """What each sparse layer captured while the model read `tokens`; empty for a dense model."""
    captured = _read(model, tokens, return_intermediate=True)
    all_pairs = tokens.shape[1] ** 2 * model.config.n_head
    return tuple(
        LayerCapture(
            window=layer["window_size"] if layer["local_mask"] is not None else None,
            sparsity=layer["sparsity_ratio"],
            pairs=round((1 - layer["sparsity_ratio"]) * all_pairs),
        )
        for layer in captured
        if layer is not None
    )


@torch.no_grad()
def _read(model: GPT2, tokens: Int64[Tensor, "B N"], *, return_intermediate: bool = False) -> list:
    """One forward pass without dropout, on the model's device."""
    training = model.training
    model.eval()
    try:
        seen = model(tokens.to(model.wte.weight.device), return_intermediate=return_intermediate)
    finally:
        model.train(training)
    return seen.intermediates or []
