"""Report data as JSON that can stand inside an HTML page, whatever its texts hold."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..patterns.counting import count
from ..plan import Blocks, HeadGroup, Plan, Term, shortened
from .data import AttentionFigure, CostCurve, ReportData

Json = dict[str, Any]

# Inside a script element no text may look like markup; older JavaScript ends a line at the two separators.
ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def as_json(data: ReportData) -> str:
    """`data` for the page's script: plain ASCII without `<`, `>` or `&`, and without NaN.

    Raises:
        ValueError: The plan of the masks is not square.
    """
    record = {
        **{name: getattr(data, name) for name in ("title", "lead", "facts")},
        "runs": [asdict(run) for run in data.runs],
        "cost": data.cost and {**asdict(data.cost), "curves": [_cost(curve) for curve in data.cost.curves]},
        "masks": data.masks and _plan(data.masks),
        "attention": data.attention and _attention(data.attention),
        "layers": [asdict(layer) for layer in data.layers],
        "sample": data.sample and asdict(data.sample),
    }
    return json.dumps(_clean(record), separators=(",", ":"), allow_nan=False).translate(ESCAPES)


def depths(shares: ArrayLike) -> NDArray[np.uint8]:
    """Shares in 0 … 1 as bytes, by their root: so that 1 % can be told from nothing, and from 2 %."""
    return np.round(255 * np.sqrt(np.clip(np.asarray(shares, np.float64), 0, 1))).astype(np.uint8)


def _clean(value: Any) -> Any:
    """The same tree without what no browser reads: NaN and infinity become None, halves of characters `?`."""
    if isinstance(value, dict):
        return {name: _clean(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _packed(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _cost(curve: CostCurve) -> Json:
    return {"name": curve.name, "points": curve.points}


def _attention(figure: AttentionFigure) -> Json:
    layers = [
        {"maps": _packed(depths(layer.maps)), "mass": np.round(layer.mass.astype(float), 5).tolist()}
        for layer in figure.layers
    ]
    return {
        "tokens": figure.tokens,
        "groups": [{"pattern": pattern} for pattern in figure.patterns],
        "edges": figure.edges,
        "cells": figure.layers[0].maps.shape[-1],
        "layers": layers,
    }


def _plan(plan: Plan) -> Json:
    if plan.queries != plan.keys:
        raise ValueError(
            f"masks: the plan has {plan.queries} queries and {plan.keys} keys; give one with equal lengths"
        )
    return {"length": plan.queries, "groups": [_group(group, plan) for group in plan.apart.groups]}


def _group(group: HeadGroup, plan: Plan) -> Json:
    return {
        "first": group.first,
        "last": group.last,
        "pattern": shortened(group.pattern),
        "share": count(group.pattern, plan.extent) / max(plan.queries**2, 1),
        "terms": [_term(term) for term in group.terms],
    }


def _term(term: Term) -> Json:
    """A term as the page's own script counts it."""
    if isinstance(term, Blocks):
        listed = {"starts": term.starts[0].tolist(), "columns": term.columns.tolist(), "tile": term.tile.tolist()}
        return {"size": term.size, **listed, "tiles": _packed(np.packbits(term.tiles))}
    keys, queries = getattr(term, "keys", None), getattr(term, "queries", None)
    return {
        **asdict(term.offsets),
        "keys": None if keys is None else keys.tolist(),
        "queries": None if queries is None else queries.tolist(),
        "documents": term.documents,
    }
