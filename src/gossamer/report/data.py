"""What a report shows, as values that import no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..plan import Plan

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Run:
    """One training run. Runs called "dense" and "sparse" are compared with each other.

    Args:
        training: (step, loss in nats per token) of each step.
        validation: The same on held-out text, at some of the steps.
        peak_memory_bytes: The most that training needed at any moment.
        validation_loss: The last of `validation`, in nats per token.
        parameters: Trained numbers in the model.
    """

    name: str
    training: Curve
    validation: Curve
    tokens_per_second: float
    peak_memory_bytes: int
    validation_loss: float
    parameters: int


@dataclass(frozen=True)
class CostCurve:
    """What one way to compute attention costs: (length in tokens, seconds, peak bytes) at each length."""

    name: str
    points: tuple[tuple[int, float | None, int | None], ...]


@dataclass(frozen=True)
class CostFigure:
    """Time and memory against length, and the length from which sparse is faster (None: it never is)."""

    name: str
    curves: tuple[CostCurve, ...]
    crossover: float | None = None


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """Where the heads of one layer look.

    Args:
        maps: [H, cells, cells], as `attention_maps` gives them.
        mass: [H, bins], as `mass_by_distance` gives it.
    """

    maps: NDArray[np.float32]
    mass: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AttentionFigure:
    """Where a trained model looks while it reads `tokens`.

    Args:
        tokens: The text of each token. It may hold anything: the page shows it as text.
        patterns: The pattern of each head.
        edges: Distances that bound the bins of `mass`.
    """

    tokens: tuple[str, ...]
    patterns: tuple[str, ...]
    edges: tuple[int, ...]
    layers: tuple[LayerAttention, ...]


@dataclass(frozen=True)
class LayerCapture:
    """What one layer's attention did in a real forward pass.

    Args:
        window: Keys that a query of a local head sees, itself included; None where no head has a window.
        sparsity: Share of the n² pairs that was not computed, averaged over heads.
        pairs: Pairs that were computed, summed over heads.
    """

    window: int | None
    sparsity: float
    pairs: int


@dataclass(frozen=True)
class Sample:
    """Text that a model wrote after a prompt, and a line that says which model, and how it was drawn."""

    name: str
    prompt: str
    text: str


@dataclass(frozen=True, eq=False)
class ReportData:
    """A report; what is absent is left out of the page.

    Args:
        title: Also the page's own title.
        lead: One or two sentences below it.
        masks: The plan whose head groups are drawn; it must be square.
        facts: (name, value) pairs for "How this was made": machine, versions, command.
    """

    title: str
    lead: str = ""
    runs: tuple[Run, ...] = ()
    cost: CostFigure | None = None
    masks: Plan | None = None
    attention: AttentionFigure | None = None
    layers: tuple[LayerCapture, ...] = ()
    sample: Sample | None = None
    facts: tuple[tuple[str, str], ...] = ()
