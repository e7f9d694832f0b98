"""The document's dense formulas."""

from __future__ import annotations

import pytest
import torch

from gossamer.nn.masks import compute_sparsity, masked_attention, stable_softmax
from gossamer.patterns import Causal, Window
from gossamer.reference import reference

HALVES_AND_MORE = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)


def as_the_document_writes_it(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    if mask is not None:
        x = x.masked_fill(mask == 0, -1e9)
    weights = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return weights / weights.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("masked", [False, True])
def test_stable_softmax_is_the_document_s(masked: bool) -> None:
    x, mask = 50 * torch.randn(3, 4, 20, 20), torch.ones(20, 20).tril() if masked else None
    torch.testing.assert_close(stable_softmax(x, mask), as_the_document_writes_it(x, mask))
    torch.testing.assert_close(stable_softmax(x), torch.softmax(x, -1))


@HALVES_AND_MORE
def test_a_row_with_nothing_to_see_is_zero(dtype: torch.dtype) -> None:
    x = (100 * torch.randn(5, 6)).to(dtype)
    for mask in (torch.zeros(5, 6), torch.zeros(5, 6, dtype=torch.bool)):
        assert (stable_softmax(x, mask) == 0).all()
    hidden = x.clone()
    hidden[2] = -torch.inf
    for result in (stable_softmax(hidden), stable_softmax(hidden, torch.ones(5, 6))):
        assert (result[2] == 0).all() and not result.isnan().any()
        assert ((result.double().sum(-1) - 1).abs()[[0, 1, 3, 4]] < 0.02).all()


@HALVES_AND_MORE
def test_what_is_masked_is_exactly_zero(dtype: torch.dtype) -> None:
    mask = torch.rand(7, 9) > 0.5
    weights = stable_softmax(torch.randn(2, 7, 9).to(dtype), mask)
    assert weights.dtype == dtype
    assert ((weights > 0) == mask).all()


@HALVES_AND_MORE
@pytest.mark.parametrize("magnitude", [1e4, 1e-4, 0.0])
def test_it_never_overflows(dtype: torch.dtype, magnitude: float) -> None:
    """-1e9 is brought into the range of half precision."""
    x = (magnitude * torch.randn(4, 30)).to(dtype).requires_grad_()
    weights = stable_softmax(x, torch.ones(4, 30).tril())
    weights.square().sum().backward()
    assert weights.isfinite().all() and x.grad.isfinite().all()


def test_masked_attention_is_the_oracle() -> None:
    q, k, v = (torch.randn(2, 3, 30, 8).double() for _ in range(3))
    pattern = Causal() & Window(5)
    mask = torch.from_numpy(pattern.dense_mask(30))
    torch.testing.assert_close(masked_attention(q, k, v, mask), reference(q, k, v, pattern)[0])


def test_sparsity_is_the_share_that_is_hidden() -> None:
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert compute_sparsity(mask) == pytest.approx(6 / 9)
    assert compute_sparsity(mask.bool()) == compute_sparsity(mask.float()) == compute_sparsity(mask)
    assert compute_sparsity(mask, "causal") == pytest.approx(3 / 6)
    assert compute_sparsity(torch.stack([mask, torch.ones(3, 3)])) == pytest.approx(3 / 9)
    assert compute_sparsity(torch.stack([mask, torch.ones(3, 3)]), denominator="causal") == pytest.approx(3 / 12)


def test_the_diagonal_ends_at_the_last_query_and_key() -> None:
    """As everywhere: a mask of the last two queries has all keys but one in their past."""
    mask = torch.ones(2, 5)
    mask[:, 3:] = 0
    assert compute_sparsity(mask, "causal") == pytest.approx(3 / 9)


REFUSED = [
    (lambda: compute_sparsity(torch.ones(3)), r"mask has shape \(3,\); give \[queries, keys\]"),
    (lambda: compute_sparsity(torch.ones(0, 3)), r"mask has shape \(0, 3\); give"),
    (lambda: compute_sparsity(torch.ones(3, 3), "half"), r"denominator is 'half'; give 'all' or 'causal'"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_bad_mask_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
