"""The checks look: each fault, planted once, makes the check of the sound code fail.

They are planted in the tiled backend, which runs everywhere; those of kernels are planted in their source, on a GPU
(tests/gpu) and in Triton's interpreter (tests/kernels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer.ops.choice
import gossamer.plan
from gossamer.kernels.tiled import backend, backward, forward, scores, walk
from gossamer.patterns import Causal, Documents, Extent, Strided, Window, cover, normal_form
from gossamer.patterns.clauses import Clause
from gossamer.patterns.offsets import Offsets
from gossamer.patterns.parse import _parse
from gossamer.plan import Band, plan
from tests.checks import (
    Setting,
    check_bounds,
    check_cost,
    check_cover,
    check_dropout,
    check_empty_rows,
    check_equals_oracle,
    check_error_beside_sdpa,
    check_no_leak,
    check_normal_form,
    check_pieces,
    check_plan,
    check_repeatable,
    check_support,
    check_text,
    check_views,
    draw,
)
from tests.gpu.planted import FAULTS as GPU_FAULTS
from tests.patterns.test_meaning import check_meaning
from tests.patterns_list import HEADS, PATTERNS
from tests.test_attention_calls import check_a_class_that_is_defined_again, check_changing_lengths

Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[], None]


@pytest.fixture(autouse=True)
def cold_caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a fault made outlives it."""
    yield
    forget()


def forget() -> None:
    """Empties what plans and choices are kept in."""
    for kept in (plan, gossamer.plan._plan, gossamer.plan.resized, _parse, gossamer.ops.choice.choice):
        kept.cache_clear()


def on(check: Callable, name: str, *arguments: object, **options: object) -> Check:
    """The check of a listed pattern at a setting."""
    return lambda: check(PATTERNS[name], Setting(heads=HEADS[name], **options), *arguments)


def equals_oracle(name: str, **options: object) -> Check:
    return lambda: check_equals_oracle(draw(PATTERNS[name], Setting(heads=HEADS[name], **options)))


def bands(change: Callable[[Offsets], Offsets]) -> Plant:
    """Every band of a plan has other offsets."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        sound = gossamer.plan._term

        def faulty(clause: Clause, length: int) -> object:
            term = sound(clause, length)
            return replace(term, offsets=change(term.offsets)) if isinstance(term, Band) else term

        patch.setattr(gossamer.plan, "_term", faulty)

    return plant


def around(owner: object, name: str, faulty: Callable) -> Plant:
    """`faulty(sound, *arguments)` in place of `sound(*arguments)`."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        sound = getattr(owner, name)
        patch.setattr(owner, name, lambda *given, **named: faulty(sound, *given, **named))

    return plant


def instead(owner: object, name: str, value: object) -> Plant:
    return lambda patch: patch.setattr(owner, name, value)


def _finite_lse(sound: Callable, *given: object) -> tuple[Tensor, Tensor]:
    out, lse = sound(*given)
    return out, lse.clamp(min=-1e30)


def _nan_where_empty(sound: Callable, *given: object) -> tuple[Tensor, Tensor]:
    out, lse = sound(*given)
    return out.masked_fill((lse == -torch.inf)[..., None], torch.nan), lse


def _as_if_contiguous(sound: Callable, saved: object, grad_out: Tensor, *given: object) -> tuple:
    strides = torch.empty(grad_out.shape, device="meta").stride()
    room = max(sum((n - 1) * s for n, s in zip(grad_out.shape, strides, strict=True)) + 1, 1)
    if grad_out.untyped_storage().nbytes() // grad_out.element_size() >= room:
        grad_out = torch.as_strided(grad_out, grad_out.shape, strides, 0)
    return sound(saved, grad_out, *given)


def _dense_too(sound: Callable, q: Tensor, k: Tensor, *given: object) -> tuple[Tensor, Tensor]:
    q @ k.mT
    return sound(q, k, *given)


def _writes_to_q(sound: Callable, q: Tensor, *given: object) -> tuple[Tensor, Tensor]:
    q.mul_(2.0)
    return sound(q, *given)


def _noisy(sound: Callable, *given: object) -> tuple[Tensor, Tensor]:
    out, lse = sound(*given)
    return out + 1e-15 * torch.rand_like(out), lse


def _without_rescale(part: forward.Forward, queries: slice, out: Tensor, lse: Tensor, fresh: bool) -> None:
    before, lse_before = part.out[:, :, queries], part.lse[:, :, queries]
    before.add_(out.view(before.shape))
    lse_before.copy_(torch.logaddexp2(lse_before, lse.view(lse_before.shape)))


def _stale_plans(patch: pytest.MonkeyPatch) -> None:
    known: dict = {}
    patch.setattr(gossamer.ops.choice, "plan", lambda pattern, *sizes: known.setdefault(sizes, plan(pattern, *sizes)))


def _stale_classes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gossamer.ops.choice, "parse", lambda text: _parse(text, 0))
    patch.setattr(import_module("gossamer.patterns.parse"), "parse", lambda text: mock.ANY)


def _a_new_seed_each_time(sound: Callable, *given: object) -> scores.Dropout | None:
    made = sound(*given)
    return made and replace(made, seed=int(torch.randint(2**31, ()).item()))


def _any_mask_for_a_full_block(masks: Tensor, tile: np.ndarray, dtype: torch.dtype) -> Tensor:
    if not len(masks):
        return None
    return walk._bias(torch.cat([masks[index] for index in tile.tolist()], dim=1), dtype)


def _may_is_must(sound: Callable, *given: object) -> tuple[np.ndarray, np.ndarray]:
    may, _ = sound(*given)
    return may, may


def _drops_the_last_quarter(sound: Callable, *given: object) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = sound(*given)
    return rows[:-1], columns[:-1]


TILED = backend.Tiled
WIDER = property(lambda self: Clause(Offsets(-self.size, self.size)))
NO_OFFSET = property(lambda self: f"Strided(every={self.every})")

FAULTS: dict[str, tuple[Plant, Check]] = {
    "the plan's window is one key too wide": (
        bands(lambda o: replace(o, high=o.high + 1)),
        on(check_support, "causal window", dtype=torch.bfloat16),
    ),
    "the plan's window is one key too narrow": (
        bands(lambda o: replace(o, high=o.high - 1)),
        on(check_support, "causal window", dtype=torch.bfloat16),
    ),
    "Window means one key more": (
        instead(Window, "clause", WIDER),
        lambda: check_meaning(Causal() & Window(6), lambda q, k: k <= q < k + 6, 30, 30),
    ),
    "a future key is seen": (
        bands(lambda o: replace(o, low=o.low - 1)),
        on(check_no_leak, "causal", [70], dtype=torch.float32),
    ),
    "the tail of a band is not masked": (
        instead(walk, "_all_visible", lambda *_: True),
        on(check_support, "causal", dtype=torch.float32),
    ),
    "a partial block counts as full": (
        instead(walk, "_block_bias", lambda *_: None),
        on(check_support, "small blocks", dtype=torch.float32),
    ),
    "a full block reads the last mask": (
        instead(walk, "_block_bias", _any_mask_for_a_full_block),
        on(check_support, "full and partial", dtype=torch.float32),
    ),
    "tiles are added without rescaling": (
        instead(forward.Forward, "join", _without_rescale),
        equals_oracle("streaming"),
    ),
    "each tile forgets the ones before": (
        around(forward.Forward, "join", lambda sound, *given: sound(*given[:-1], True)),
        equals_oracle("streaming"),
    ),
    "the log-sum-exp of an empty row is finite": (
        around(TILED, "forward", _finite_lse),
        on(check_empty_rows, "the future"),
    ),
    "an empty row is NaN": (around(TILED, "forward", _nan_where_empty), on(check_empty_rows, "the future")),
    "a key's gradient is overwritten, not added to": (
        instead(backward, "_add", lambda total, tile, part, factor=1.0: total[:, tile.keys].copy_(part * factor)),
        equals_oracle("causal", key_heads=1),
    ),
    "a shared key head loses a group's gradient": (
        instead(backend.Heads, "put_keys", lambda *_: None),
        equals_oracle("uneven heads", batch=2),
    ),
    "the scale is forgotten in the keys' gradient": (
        around(backward, "_add", lambda sound, total, tile, part, factor=1.0: sound(total, tile, part)),
        equals_oracle("causal"),
    ),
    "the output's gradient is read with wrong strides": (
        around(TILED, "backward", lambda sound, me, *given: _as_if_contiguous(lambda *a: sound(me, *a), *given)),
        on(check_views, "causal window", batch=2),
    ),
    "the gradient of the log-sum-exp is dropped": (
        around(TILED, "backward", lambda sound, me, saved, dout, dlse, *given: sound(me, saved, dout, None, *given)),
        equals_oracle("causal"),
    ),
    "the soft-cap's slope is forgotten": (
        around(backward, "scores", lambda sound, *given: (sound(*given)[0], None)),
        equals_oracle("causal", softcap=1.0),
    ),
    "the sinks' gradient has the wrong sign": (
        around(backend, "sink_gradient", lambda sound, *given: -sound(*given)),
        equals_oracle("causal", sinks=True),
    ),
    "half precision is computed in half precision": (
        instead(backend, "_compute_dtype", lambda dtype: dtype),
        lambda: check_error_beside_sdpa(draw(PATTERNS["streaming"], Setting(dtype=torch.bfloat16))),
    ),
    "an input is written to": (
        around(TILED, "forward", lambda sound, me, *given: _writes_to_q(lambda *a: sound(me, *a), *given)),
        equals_oracle("causal"),
    ),
    "two runs differ": (
        around(TILED, "forward", _noisy),
        lambda: check_repeatable(draw(PATTERNS["causal"], Setting())),
    ),
    "the backward drops other pairs": (
        around(backend.Dropout, "of", _a_new_seed_each_time),
        lambda: check_dropout(draw(PATTERNS["causal"], Setting()), 0.3, seed=5),
    ),
    "dense attention runs in disguise": (
        around(TILED, "forward", lambda sound, me, *given: _dense_too(lambda *a: sound(me, *a), *given)),
        lambda: check_cost(Causal() & Window(64), 1024, most=2.5),
    ),
    "a plan is taken from another pattern": (_stale_plans, check_changing_lengths),
    "a class that is defined again meets old plans": (_stale_classes, check_a_class_that_is_defined_again),
    "decoding starts at position 0": (
        instead(Extent, "aligned", staticmethod(lambda q, k: Extent(range(q), range(k)))),
        on(check_pieces, "causal window", [20, 1, 115]),
    ),
    "terms overlap": (
        instead(normal_form, "disjoint", lambda clauses: clauses),
        lambda: check_plan(PATTERNS["streaming"], 100, 100),
    ),
    "a closed form overlaps": (
        instead(normal_form, "disjoint", lambda clauses: clauses),
        lambda: check_normal_form(PATTERNS["streaming"], 100, 100),
    ),
    "bounds promise too much": (
        around(Documents, "bounds", _may_is_must),
        lambda: check_bounds(Documents([5, 9, 30]), 44, 44, rectangles=100),
    ),
    "a block is lost": (
        around(cover, "_quarters", _drops_the_last_quarter),
        lambda: check_cover(PATTERNS["random blocks"], 136, 136, size=16),
    ),
    "text loses a setting": (
        instead(Strided, "spec", NO_OFFSET),
        lambda: check_text(Causal() & Strided(5, offset=2)),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, check = FAULTS[name]
    check()
    forget()
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("name", GPU_FAULTS)
def test_a_fault_for_a_gpu_is_one_of_the_source_as_it_is(name: str) -> None:
    """They are looked for on a GPU alone; here, that none was left behind by a change."""
    assert GPU_FAULTS[name].faulty in GPU_FAULTS[name].source
