"""Long rows of blocks in parts, on the GPU: right beside the definition, the same bits always, and without a wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer import attend
from gossamer.kernels.devices import capability
from gossamer.kernels.hopper import long_passes, row_parts
from gossamer.patterns import Pattern, Strided, Window, presets
from tests.checks import Setting, check_empty_rows, check_error, check_support, draw
from tests.gpu.test_kernels import captured, poisoned_memory
from tests.gpu.test_within import nothing_waits
from tests.kernels.row_parts_in_interpreter import CASES, Case, check_merged, check_summed
from tests.kernels.test_long_rows import LENGTH, PATTERNS, WITHIN, both, short_limits

__all__ = ["poisoned_memory", "short_limits"]

pytestmark = pytest.mark.gpu

FURTHEST = 4e-3
"""Two roads' results in bfloat16, each rounded once, lie 1.4e-3 to 2.9e-3 of the norm apart."""

USUAL = Setting(
    heads=4, queries=LENGTH, width=64, batch=len(WITHIN), device="cuda", dtype=torch.bfloat16, backend="hopper"
)
SHORT: dict[str, tuple[Pattern, dict[str, object]]] = {
    "a layout a head": (PATTERNS["a layout a head"], {}),
    "partial, within ends, shared keys": (PATTERNS["partial"], {"within": WITHIN, "sinks": True, "key_heads": 2}),
    "heads that are long elsewhere": (
        PATTERNS["heads that are long elsewhere"],
        {"key_heads": 1, "sinks": True, "dtype": torch.float16},
    ),
    "one layout, other widths": (PATTERNS["one layout"], {"width": 128, "value_width": 40, "key_heads": 2}),
    "columns beside, within ends": (PATTERNS["a layout a head"] | Strided(101), {"within": WITHIN}),
    "blocks of 128, within ends": (
        both(0, 6, size=128) & ~Window(9),
        {"queries": 2 * LENGTH, "width": 128, "within": WITHIN},
    ),
}


@pytest.fixture(autouse=True)
def on_hopper() -> None:
    if capability(torch.device("cuda")) != (9, 0):
        pytest.skip("these are the kernels for compute capability 9.0")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is made of parts; there must be some."""
    made: list[str] = []

    def noted(name: str, write: Callable[..., None]) -> Callable[..., None]:
        return lambda *given: (made.append(name), write(*given))[1]

    for name in ("write_merged", "write_sums"):
        monkeypatch.setattr(long_passes.row_parts, name, noted(name, getattr(row_parts, name)))
    yield made
    assert "write_merged" in made


@pytest.mark.parametrize("name", SHORT)
def test_the_error_is_that_of_plain_attention(short_limits: None, joined: list[str], name: str) -> None:
    pattern, changes = SHORT[name]
    check_error(draw(pattern, replace(USUAL, **changes)))
    assert "write_sums" in joined


@pytest.mark.parametrize("within", [None, WITHIN[1]], ids=str)
def test_exactly_the_visible_pairs_are_seen(
    short_limits: None, joined: list[str], within: tuple[int, int] | None
) -> None:
    changed = replace(USUAL, within=within and (within,))
    check_support(PATTERNS["partial"], changed)
    if within is not None:
        check_empty_rows(PATTERNS["partial"], changed)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", [check_merged, check_summed])
def test_parts_become_rows_as_in_pytorch(check: Callable[[Case, str], None], name: str) -> None:
    check(CASES[name], "cuda")


class Long:
    """BigBird at a length at which its first and last block are long, and the gradients of all its inputs."""

    def __init__(self, length: int = 32768, heads: int = 4, batch: int = 2):
        self.pattern = presets.bigbird_itc(length // 64, heads)
        shape = batch, length, heads, 64
        q, k, v, self.grad_out = (
            torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4)
        )
        self.inputs = [x.requires_grad_() for x in (q, k, v)]
        self.within = torch.tensor([[0, length], [500, length - 70]], device="cuda", dtype=torch.int32)

    def results(self, backend: str | None = "hopper", within: Tensor | None = None) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in self.inputs]  # made on the stream that captures
        out, lse = attend(*leaves, self.pattern, within=within, return_lse=True, backend=backend)
        return out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, self.grad_out)


@pytest.mark.parametrize("ends", [False, True], ids=["whole", "within ends"])
def test_long_sequences_are_right_and_repeat_to_the_bit(joined: list[str], ends: bool) -> None:
    problem = Long()
    within = problem.within if ends else None
    first = problem.results(within=within)
    for x, right in zip(first, problem.results("triton", within), strict=True):
        for rows in (slice(None), slice(64), slice(-64, None)):  # two blocks of 512 do not show in the norm of all
            found, other = x[:, :, rows].float(), right[:, :, rows].float()
            seen = other.isfinite()
            assert torch.equal(found.isfinite(), seen)
            assert (found - other)[seen].norm() <= FURTHEST * other[seen].norm()
    for _ in range(10):
        assert all(map(torch.equal, problem.results(within=within), first))


def test_nothing_waits_for_the_device(joined: list[str]) -> None:
    problem = Long()
    problem.results(within=problem.within)  # tables of the pattern are made once
    with nothing_waits():
        problem.results(within=problem.within)


def test_a_graph_follows_the_ends(joined: list[str]) -> None:
    problem = Long()

    def call() -> tuple[Tensor, ...]:
        return problem.results(within=problem.within)

    replayed, replay = captured(call)
    for ends in ((9, 32000), (100, 101)):
        problem.within.copy_(torch.tensor(ends, dtype=torch.int32).expand(2, 2))
        replay()
        for found, right in zip(replayed, call(), strict=True):
            assert torch.equal(found, right)
