"""A report with something in every section, and text in it that would like to be markup."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.patterns import Causal, PerHead, Strided, Window
from gossamer.plan import plan
from gossamer.report import (
    AttentionFigure,
    CostCurve,
    CostFigure,
    LayerAttention,
    LayerCapture,
    ReportData,
    Run,
    Sample,
    distance_edges,
)

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!--<script>\u2028\u2029&lt;'`${1}"
LENGTH, HEADS, CELLS = 96, 3, 8
PATTERN = PerHead([(Causal() & Window(8), 2), (Causal() & Strided(10), 1)])


def run(name: str, loss: float) -> Run:
    """A run of 30 steps whose loss falls to about `loss`."""
    training = tuple((step, loss + 4 / step) for step in range(1, 31))
    return Run(name, training, training[9::10], 1234.5, 300 * 2**20, loss, 1_000_000)


@pytest.fixture(scope="session")
def report() -> ReportData:
    generator = np.random.default_rng(0)
    edges = distance_edges(LENGTH)
    layer = LayerAttention(
        generator.random((HEADS, CELLS, CELLS), np.float32),
        generator.dirichlet(np.ones(len(edges) - 1), HEADS).astype(np.float32),
    )
    lengths = (512, 1024, 2048)
    return ReportData(
        title=f"A title {HOSTILE}",
        lead=f"A lead {HOSTILE}",
        runs=(run("dense", 3.0), run("sparse", 3.1)),
        cost=CostFigure(
            HOSTILE,
            (
                CostCurve("dense", tuple((n, n * n * 1e-9, n * 1000) for n in lengths)),
                CostCurve("sparse", tuple((n, n * 1e-6, n * 900) for n in lengths)),
                CostCurve("naive", ((512, 0.1, 10**7), (1024, None, None))),
            ),
            crossover=1000.0,
        ),
        masks=plan(PATTERN, LENGTH, LENGTH, HEADS),
        attention=AttentionFigure(
            (HOSTILE, " 数据", "\ud800") * (LENGTH // 3), ("near", HOSTILE, "far"), edges, (layer, layer)
        ),
        layers=(LayerCapture(8, 0.9, 1000), LayerCapture(None, 0.5, 2000)),
        sample=Sample(HOSTILE, HOSTILE, HOSTILE),
        facts=((HOSTILE, HOSTILE),),
    )
