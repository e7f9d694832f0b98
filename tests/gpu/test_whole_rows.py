"""Longformer's pattern, whose global tokens see all and are seen by all: few passes, and right as every other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import attend
from gossamer.kernels.devices import capability
from gossamer.patterns import Pattern, Tokens, Window, presets
from tests.checks import check_agreement, check_error, check_repeatable, check_support, draw
from tests.gpu.test_kernels import LENGTH, accepting, captured, drawn, poisoned_memory, setting
from tests.kernels.row_shares_in_interpreter import CHECKS

__all__ = ["poisoned_memory"]

pytestmark = pytest.mark.gpu

SEVENTY = tuple(range(30)) + tuple(range(31, 391, 9))
TOKENS = {
    "one": (0,),
    "both ends": (0, LENGTH - 1),
    "side by side": (211, 212, 213),
    "seventy": SEVENTY,
}
PATTERNS: dict[str, Pattern] = {
    **{f"{name} of a window": presets.longformer(200, tokens) for name, tokens in TOKENS.items()},
    "one of a narrow window": presets.longformer(60),
    "two that every window holds": presets.longformer(600, (210, 214)),
    "rows alone": Window(90) | Tokens((5, 300)).T,
    "columns alone": Window(90) | Tokens((5, 300)),
    "more columns": Window(40) | Tokens((7, 300)) | Tokens((7, 300)).T | Tokens((100, 101)) & ~Window(130),
}
every_pattern = pytest.mark.parametrize("name", PATTERNS)
OTHERS = {
    "float16": {"dtype": torch.float16},
    "float16 × 128": {"dtype": torch.float16, "width": 128},
    "bfloat16 × 128": {"width": 128},
    "narrow values": {"width": 128, "value_width": 64},
    "wide values": {"value_width": 128},
    "40 wide": {"width": 40},
    "one key head": {"key_heads": 1},
    "three heads a key head": {"heads": 6, "key_heads": 2},
    "two key heads × 128": {"key_heads": 2, "width": 128},
    "one scale": {"scale": 0.5},
    "growing scores": {"magnitude": 4.0},
    "more keys": {"queries": 200, "keys": 424},
    "more queries": {"queries": 424, "keys": 200},
    "long": {"queries": 2200, "heads": 1},
}


@pytest.fixture(autouse=True)
def on_hopper() -> None:
    if capability(torch.device("cuda")) != (9, 0):
        pytest.skip("these passes are of the backend for compute capability 9.0")


@every_pattern
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
def test_the_error_is_that_of_plain_attention(name: str, sinks: bool) -> None:
    check_error(drawn(PATTERNS[name], batch=2, backend="hopper", sinks=sinks))


@every_pattern
def test_exactly_the_visible_pairs_are_seen(name: str) -> None:
    check_support(PATTERNS[name], setting(backend="hopper", heads=2))


@pytest.mark.parametrize("other", OTHERS)
def test_every_shape(other: str) -> None:
    for name in ("one of a window", "seventy of a window", "one of a narrow window"):
        check_error(drawn(PATTERNS[name], **({"batch": 2, "backend": "hopper", "sinks": True} | OTHERS[other])))


@every_pattern
def test_backends_agree(name: str) -> None:
    problem = draw(PATTERNS[name], setting(batch=2))
    check_agreement(problem, {"hopper", "triton"} & set(accepting(problem)))


@pytest.mark.parametrize("name", ["one of a window", "seventy of a window"])
def test_it_repeats_to_the_bit(name: str) -> None:
    for _ in range(5):
        check_repeatable(drawn(PATTERNS[name], batch=2, queries=1096, backend="hopper", sinks=True))


@pytest.mark.parametrize("name", ["one of a window", "seventy of a window"])
def test_a_cuda_graph_replays_with_new_numbers(name: str) -> None:
    problem = drawn(PATTERNS[name], batch=2, backend="hopper")
    leaves = [x.detach().requires_grad_() for x in problem.inputs.values()]

    def results() -> tuple[Tensor, ...]:
        out = attend(*leaves, problem.pattern, backend="hopper")
        return out.detach(), *torch.autograd.grad(out, leaves, problem.grad_out)

    replayed, replay = captured(results)
    fresh = draw(problem.pattern, setting(batch=2, seed=1))
    with torch.no_grad():
        for x, new in zip((*leaves, problem.grad_out), (*fresh.inputs.values(), fresh.grad_out), strict=True):
            x.copy_(new)
    replay()
    for found, right in zip(replayed, results(), strict=True):
        assert torch.equal(found, right)


@pytest.mark.parametrize("name", CHECKS)
def test_shares_join_as_in_pytorch(name: str) -> None:
    CHECKS[name]("cuda")
