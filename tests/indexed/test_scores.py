"""`index_scores` and `attention_mass` on the CPU: their definitions, what counts nothing, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gossamer.indexed import Selection, attend_indexed, attention_mass, index_scores, top_keys
from gossamer.kernels.problem import Unsupported
from gossamer.kernels.tiled.chosen import ELEMENTS
from tests.chosen_checks import SIZES, Sizes, check_hidden_numbers, check_mass, check_scores, run_scores, standing
from tests.indexed_checks import draw

DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_scores_are_the_definition(name: str, dtype: torch.dtype) -> None:
    check_scores(SIZES[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", [name for name in SIZES if name != "no relu"])
def test_mass_is_the_definition(name: str, dtype: torch.dtype) -> None:
    check_mass(SIZES[name], dtype)


@pytest.mark.parametrize("key_heads", [2, 4])
def test_mass_sums_over_all_heads(key_heads: int) -> None:
    check_mass(Sizes(key_heads=key_heads), torch.float64)


@pytest.mark.parametrize("name", ["plain", "causal", "mask"])
def test_what_nobody_sees_may_hold_anything(name: str) -> None:
    check_hidden_numbers(SIZES[name], torch.float32)


@pytest.mark.parametrize("name", SIZES)
def test_blocks_of_queries_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_scores(SIZES[name], torch.float64, "cpu", None)[0]
    monkeypatch.setitem(ELEMENTS, "cpu", 1)
    for x, y in zip(run_scores(SIZES[name], torch.float64, "cpu", None)[0], whole, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("relu", [False, True])
def test_the_gradient_is_the_derivative(relu: bool) -> None:
    q, k, weights = torch.randn(1, 2, 3, 4), torch.randn(1, 9, 4), torch.randn(1, 3, 2)
    given = [x.double().requires_grad_() for x in (q, k, weights)]
    selection = Selection(torch.tensor([[[0, 5, 5], [8, -1, 2], [3, 9, 4]]]))

    def scores(*inputs: Tensor) -> Tensor:
        found = index_scores(*inputs, selection, relu=relu)
        return found.masked_fill(found == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(scores, given)


def test_results_repeat_to_the_bit() -> None:
    once, again = (run_scores(SIZES["causal"], torch.float32, "cpu", None)[0] for _ in range(2))
    assert all(map(torch.equal, once, again))


def test_a_choice_of_the_best_has_the_best_scores() -> None:
    q, k, weights = torch.randn(1, 4, 30, 8), torch.randn(1, 30, 8), torch.randn(1, 30, 4)
    best = top_keys(q, k, weights, 5)
    every = index_scores(q, k, weights, Selection(torch.arange(30).expand(1, 30, 30), causal=True))
    assert torch.equal(every == -torch.inf, torch.ones(30, 30).triu(1).bool()[None])
    found = index_scores(q, k, weights, Selection(best, causal=True))
    torch.testing.assert_close(found.sort(-1, descending=True).values, every.topk(5).values)


def test_mass_is_the_same_by_the_log_sum_exp_of_any_keys() -> None:
    """Of one head: its normalisation goes out of the shares."""
    q, k = torch.randn(1, 1, 20, 8), torch.randn(1, 1, 20, 8)
    few, every = Selection(torch.randint(20, (1, 20, 4))), Selection(torch.arange(20).expand(1, 20, 20))
    norms = [attend_indexed(q, k, k, selection, return_lse=True)[1] for selection in (few, every)]
    found = [attention_mass(q, k, lse, few) for lse in norms]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(found[0].sum(-1), torch.ones(1, 20))


def test_who_sees_nothing_looks_nowhere() -> None:
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 1, 5, 4)
    lse = torch.tensor([0.0, -torch.inf, 0.0]).expand(1, 2, 3)
    found = attention_mass(q, k, lse, Selection(torch.tensor([[[-1, -1], [0, 1], [2, 2]]])))
    assert found.tolist() == [[[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]]


def test_a_key_stands_at_its_first_place_alone() -> None:
    for sizes in SIZES.values():
        selection = draw(replace(sizes, batch=1).case).selection
        found = selection.standing(0, sizes.queries, sizes.keys)
        assert found[:, 0].tolist() == standing(selection, sizes.keys)
        part = selection.standing(1, 3, sizes.keys)
        assert torch.equal(part, found[:, :, 1:3])


def test_they_compile_into_one_graph() -> None:
    q, k, weights = torch.randn(1, 4, 9, 8), torch.randn(1, 20, 8), torch.randn(1, 9, 4)
    given = [x.requires_grad_() for x in (q, k, weights)]

    def scored(q: Tensor, k: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        selection = Selection(indices, causal=True)
        scores = index_scores(q, k, weights, selection)
        mass = attention_mass(q, k[:, None], weights.mT, selection)
        return (scores.masked_fill(scores == -torch.inf, 0.0) * mass).sum()

    indices = torch.randint(20, (1, 9, 5))
    compiled = torch.compile(scored, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(*given, indices), given) for f in (compiled, scored)]
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operators_keep_torch_s_rules(dtype: torch.dtype) -> None:
    q = torch.randn(2, 9, 4, 8).to(dtype).transpose(1, 2).requires_grad_()
    k, weights = torch.randn(2, 20, 8).to(dtype).requires_grad_(), torch.randn(2, 9, 4, requires_grad=True)
    chosen = torch.randint(-1, 21, (2, 1, 9, 5)), torch.rand(2, 1, 9, 20) < 0.7, True
    torch.library.opcheck(torch.ops.gossamer.index_scores, (q, k, weights, *chosen, True, None))
    given = [x.detach() for x in (q, k, weights)]
    grad = torch.randn(2, 9, 5)
    torch.library.opcheck(torch.ops.gossamer.index_scores_backward, (grad, *given, *chosen, True, None))
    mass = given[0], given[1][:, None], torch.randn(2, 4, 9), *chosen, 0.5, None
    torch.library.opcheck(torch.ops.gossamer.attention_mass, mass)


def test_operations_are_counted_by_the_chosen_keys() -> None:
    q, k, weights = torch.zeros(1, 4, 9, 8, requires_grad=True), torch.zeros(1, 20, 8), torch.zeros(1, 9, 4)
    selection = Selection(torch.zeros(1, 9, 5, dtype=torch.int32))
    with FlopCounterMode(display=False) as counter:
        index_scores(q, k, weights, selection).sum().backward()
        attention_mass(q, k[:, None], weights.mT, selection)
    assert counter.get_total_flops() == (2 + 6 + 2) * 4 * 9 * 5 * 8


WRONG = {
    "weights is torch.float32 [1, 4, 9]; give torch.float32 [1, 9, 4]": {"weights": torch.zeros(1, 4, 9)},
    "block_size is 4; give a selection of single keys": {"selection": Selection(torch.zeros(1, 9, 2).int(), 4)},
    "indices is torch.int32 of shape (1, 1, 8, 2)": {"selection": Selection(torch.zeros(1, 8, 2).int())},
    "backend is 'fast'; give one of: ": {"backend": "fast"},
    "k has shape (1, 1, 0, 8); give at least 1 key": {"k": torch.zeros(1, 0, 8)},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_named(said: str) -> None:
    given = {"q": torch.zeros(1, 4, 9, 8), "k": torch.zeros(1, 20, 8), "weights": torch.zeros(1, 9, 4)}
    given["selection"] = Selection(torch.zeros(1, 9, 2).int())
    with pytest.raises(ValueError) as raised:
        index_scores(**given | WRONG[said])
    assert str(raised.value).replace(" on cpu;", ";").startswith(said)


def test_a_road_to_the_mass_is_named_or_raises() -> None:
    q, k, lse = torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, 3, 4), torch.zeros(1, 2, 3)
    selection = Selection(torch.zeros(1, 3, 2).int())
    with pytest.raises(Unsupported, match="hopper: it needs a GPU"):
        attention_mass(q, k, lse, selection, backend="hopper")
    with pytest.raises(ValueError, match="give one of: hopper, triton, tiled"):
        attention_mass(q, k, lse, selection, backend="fast")


def test_mass_names_what_does_not_fit() -> None:
    q, k = torch.zeros(1, 4, 9, 8), torch.zeros(1, 2, 20, 8)
    with pytest.raises(ValueError, match=r"lse is torch\.float32 \[1, 9, 4\] on cpu; give the log-sum-exp \[1, 4, 9\]"):
        attention_mass(q, k, torch.zeros(1, 9, 4), Selection(torch.zeros(1, 9, 2).int()))
    with pytest.raises(ValueError, match="indices holds 2 choices for each query; give one for all heads"):
        attention_mass(q, k, torch.zeros(1, 4, 9), Selection(torch.zeros(1, 2, 9, 2).int()))
