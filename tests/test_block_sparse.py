"""`attend_blocks` sees the blocks that its layout shows, and refuses what does not fit before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from gossamer import Unsupported, attend
from gossamer.block_sparse import attend_blocks
from gossamer.patterns import Blocks, Pattern
from tests.checks import Setting
from tests.layouts import CASES, FLOATS, SUPPORT, Shown, check_layout, check_layout_support


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_that_of_plain_attention(name: str) -> None:
    setting, shown = CASES[name]
    check_layout(setting, shown)


@pytest.mark.parametrize("name", SUPPORT)
def test_exactly_the_visible_pairs_are_seen(name: str) -> None:
    check_layout_support(*CASES[name])


def test_in_float64_it_is_the_pattern_of_the_same_blocks() -> None:
    layout = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.bool)
    q, k, v = torch.randn(3, 2, 2, 48, 8, dtype=torch.float64)
    torch.testing.assert_close(
        attend_blocks(q, k, v, layout[None, None], block=16), attend(q, k, v, Blocks(16, layout.tolist()))
    )


def test_a_query_that_sees_nothing_gives_nothing() -> None:
    q = torch.randn(1, 1, 32, 8, requires_grad=True)
    layout = torch.tensor([[[[False, False], [True, False]]]])
    out, lse = attend_blocks(q, q, q, layout, block=16, return_lse=True)
    assert (out[:, :, :16] == 0).all() and (lse[:, :, :16] == -torch.inf).all()
    (gradient,) = torch.autograd.grad(out.sum() + lse[:, :, 16:].sum(), q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("length", [0, 1])
def test_short_sequences(length: int) -> None:
    q = torch.randn(2, 2, length, 8)
    out = attend_blocks(q, q, q, torch.ones(1, 1, length, length, dtype=torch.bool), block=16)
    torch.testing.assert_close(out, q)


def test_autocast_computes_in_its_dtype() -> None:
    q = torch.randn(1, 1, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend_blocks(q, q, q, torch.ones(1, 1, 1, 1, dtype=torch.bool), block=16)
    assert out.dtype == torch.bfloat16


LAYOUT = torch.ones(1, 1, 2, 2, dtype=torch.bool)
WRONG = {
    "block is 48; give one of 16, 32, 64, 128": {"block": 48},
    "block is True": {"block": True},
    r"layout is torch.float32 of shape \(1, 1, 2, 2\) on cpu; give bool \[2 or 1, 4 or 1, 2, 2\]": {
        "layout": LAYOUT.float()
    },
    r"a row for each 16 of 32 queries and a column for each of 32 keys": {"layout": LAYOUT[..., :1]},
    r"layout is torch.bool of shape \(2, 2\)": {"layout": LAYOUT[0, 0]},
    r"layout is torch.bool of shape \(1, 3, 2, 2\)": {"layout": LAYOUT.expand(1, 3, 2, 2)},
    "layout is a list; give a torch.Tensor": {"layout": [[True]]},
    r"within is torch.int64 of shape \(2, 2\)": {"within": torch.zeros(2, 2, dtype=torch.int64)},
    "scale is nan": {"scale": float("nan")},
    "backend is 3": {"backend": 3},
    "backend is 'fast'; give one of": {"backend": "fast"},
    r"k is torch.float64 on cpu, but q is torch.float32": {"k": torch.zeros(2, 4, 32, 8, dtype=torch.float64)},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_refused(message: str) -> None:
    q = torch.zeros(2, 4, 32, 8)
    given = {"q": q, "k": q, "v": q, "layout": LAYOUT, "block": 16} | WRONG[message]
    with pytest.raises(ValueError, match=message):
        attend_blocks(**given)


@pytest.mark.parametrize("backend", ["dense", "decode", "hopper"])
def test_a_backend_that_refuses_says_why(backend: str) -> None:
    q = torch.zeros(1, 1, 32, 8)
    with pytest.raises(Unsupported, match=f"{backend}: .* on cpu"):
        attend_blocks(q, q, q, LAYOUT, block=16, backend=backend)


@dataclass(frozen=True)
class Rolled(Shown):
    """Not the blocks that it says."""

    axis: int = 1

    def layout(self, setting: Setting) -> torch.Tensor:
        return super().layout(setting).roll(1, self.axis)

    def pattern(self, setting: Setting, row: int) -> Pattern:
        return Shown(own_heads=True).pattern(setting, row)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_the_checks_see_the_layout_of_another_head_and_blocks_beside_the_right_ones(axis: int) -> None:
    setting = replace(FLOATS, batch=1)
    with pytest.raises(AssertionError, match=r"is over|infinite elsewhere"):
        check_layout(setting, Rolled(own_heads=True, axis=axis))
    with pytest.raises(AssertionError, match="the forward sees other pairs"):
        check_layout_support(setting, Rolled(own_heads=True, axis=axis))
