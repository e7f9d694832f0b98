"""Sequences that lie between ends of their own, on every GPU backend: right, exact, repeatable, without a wait."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from gossamer import attend, explain
from gossamer.patterns import Causal, Pattern, Window
from tests.checks import Setting, check_empty_rows, check_error, check_repeatable, check_support, draw, ours, run
from tests.gpu.test_kernels import KERNELS, LENGTH, PATTERNS, captured, drawn, poisoned_memory, setting

__all__ = ["poisoned_memory"]

pytestmark = pytest.mark.gpu

WITHIN = ((0, LENGTH), (0, 300), (150, LENGTH), (70, 333), (200, 201), (128, 128))
"""Whole, padded behind, before, at both ends, of one token, and of none."""

every_kernel = pytest.mark.parametrize("backend", KERNELS)


def between(backend: str, **changes: object) -> Setting:
    return setting(**({"batch": len(WITHIN), "within": WITHIN, "backend": backend} | changes))


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Whatever waits for the device raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch says that it does not see every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_kernel
@pytest.mark.parametrize("name", PATTERNS)
def test_the_error_is_that_of_plain_attention(backend: str, name: str) -> None:
    check_error(drawn(PATTERNS[name], batch=len(WITHIN), within=WITHIN, backend=backend, sinks=True))


@every_kernel
@pytest.mark.parametrize("name", ["band", "dilated band", "packed band", "band, columns and rows"])
@pytest.mark.parametrize("within", [(0, 300), (70, 333)], ids=str)
def test_exactly_the_pairs_between_the_ends_are_seen(backend: str, name: str, within: tuple[int, int]) -> None:
    check_support(PATTERNS[name], setting(backend=backend, within=(within,)))


@every_kernel
@pytest.mark.parametrize(
    "changes",
    [
        {"key_heads": 1}, {"key_heads": 2, "width": 128}, {"dtype": torch.float16}, {"keys": 640}, {"queries": 640},
        {"width": 96, "value_width": 40}, {"heads": 3, "key_heads": 1},
    ],
    ids=str,
)  # fmt: skip
def test_other_shapes(backend: str, changes: dict[str, object]) -> None:
    check_error(draw(PATTERNS["band, columns and rows"], between(backend, **changes)))


@every_kernel
def test_queries_outside_see_nothing_and_send_no_gradient(backend: str) -> None:
    check_empty_rows(PATTERNS["band and columns"], setting(backend=backend, within=((70, 300),)))


@every_kernel
@pytest.mark.parametrize("name", ["band", "band, columns and rows"])
def test_it_repeats_to_the_bit(backend: str, name: str) -> None:
    check_repeatable(draw(PATTERNS[name], between(backend)))


@every_kernel
@pytest.mark.parametrize("name", ["band", "dilated band", "band, columns and rows"])
def test_what_lies_outside_changes_nothing(backend: str, name: str) -> None:
    problem = draw(PATTERNS[name], between(backend))
    position, (first, last) = torch.arange(LENGTH, device="cuda"), problem.within.T[..., None]
    outside = ((position < first) | (position >= last))[:, None, :, None]
    right = run(ours, problem)
    found = run(ours, replace(problem, **{of: x.masked_fill(outside, 30.0) for of, x in problem.inputs.items()}))
    for result, x in right.items():
        assert torch.equal(found[result], x), result
    for of in ("q", "k", "v"):
        assert not found[f"gradient of {of}"].masked_fill(~outside, 0.0).any(), of


def windowed(pattern: Pattern, backend: str | None = None) -> tuple[torch.Tensor, ...]:
    problem = draw(pattern, between(backend))
    return *(x.requires_grad_() for x in problem.inputs.values()), problem.within


@every_kernel
@pytest.mark.parametrize("name", ["band", "dilated band", "band, columns and rows"])
def test_nothing_waits_for_the_device(backend: str, name: str) -> None:
    q, k, v, within = windowed(PATTERNS[name], backend)

    def call() -> None:
        attend(q, k, v, PATTERNS[name], within=within, backend=backend).sum().backward()

    call()  # tables of the pattern are made once
    with nothing_waits():
        call()


@every_kernel
def test_a_graph_follows_the_ends(backend: str) -> None:
    q, k, v, within = windowed(PATTERNS["band and columns"], backend)

    def call() -> tuple[torch.Tensor, ...]:
        out = attend(q, k, v, PATTERNS["band and columns"], within=within, backend=backend)
        return out.detach(), *torch.autograd.grad(out.float().square().sum(), (q, k, v))

    replayed, replay = captured(call)
    for ends in ((9, 400), (100, 101)):
        within.copy_(torch.tensor(ends, dtype=torch.int32).expand(len(WITHIN), 2))
        replay()
        for found, right in zip(replayed, call(), strict=True):
            assert torch.equal(found, right)


def test_compiled_whole_it_is_the_same() -> None:
    q, k, v, within = windowed(PATTERNS["band and columns"])

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, PATTERNS["band and columns"], within=within) * 2

    found, right = torch.compile(call, fullgraph=True)(q, k, v, within), call(q, k, v, within)
    assert torch.equal(found, right)
    pairs = zip(*(torch.autograd.grad(x.sum(), (q, k, v)) for x in (found, right)), strict=True)
    for a, b in pairs:
        assert torch.equal(a, b)


def test_the_fast_kernels_are_the_ones_that_are_chosen() -> None:
    q, k, v, within = windowed(Causal() & Window(100))
    explanation = explain(q, k, v, Causal() & Window(100), within=within)
    fast = "hopper" if torch.cuda.get_device_capability() == (9, 0) else "triton"
    assert [choice.backend.name for choice in (explanation.forward, explanation.backward)] == [fast, fast]
