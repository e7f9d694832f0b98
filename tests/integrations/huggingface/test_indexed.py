"""Attention over chosen keys, against a dense float64 mask: what is chosen twice, not at all, hidden or nowhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer.integrations.huggingface import Selection, indexed_attention
from gossamer.kernels import Softmax
from gossamer.kernels.indexed import Inputs, Returning
from gossamer.kernels.tiled.indexed import TILED_INDEXED
from gossamer.kernels.tiled.indexed_layouts import ELEMENTS, Layout

LENGTHS = {"all keys stand there": 50, "keys are gathered": 700}


def dense_mask(selection: Selection, keys: int) -> Tensor:
    """[B, N, Q, K] of who sees whom, one number at a time."""
    indices, size = selection.indices, selection.block_size
    seen = torch.zeros(*indices.shape[:3], keys, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, indices.shape)):
        number = int(indices[tuple(place)])
        if number >= 0:
            seen[tuple(place[:3])][number * size : (number + 1) * size] = True
    if selection.mask is not None:
        seen &= (selection.mask if selection.mask.dtype == torch.bool else selection.mask == 0)[..., :keys]
    return seen


def oracle(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, *, scaling=None, softcap=None, sinks=None) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    heads = q.shape[1]
    k, v, seen = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v, seen))
    scores = q @ k.mT * (q.shape[3] ** -0.5 if scaling is None else scaling)
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    weights = scores.softmax(-1).nan_to_num(0.0)[..., : k.shape[2]]
    return (weights @ v).transpose(1, 2)


def inputs(
    keys: int, *, heads=4, key_heads=2, queries=9, dtype=torch.float32, batch=2
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, heads, queries, 8, dtype=dtype)
    k, v = torch.randn(batch, key_heads, keys, 8, dtype=dtype), torch.randn(batch, key_heads, keys, 6, dtype=dtype)
    return tuple(x.requires_grad_() for x in (q, k, v))


def given(q: Tensor, k: Tensor, v: Tensor, selection: Selection) -> Inputs:
    return Inputs(q, k, v, v.shape[3], None, selection, Softmax(1.0))


def choices(keys: int, *shape: int) -> Tensor:
    """Numbers of keys, with the first ones again, some of them outside, and one query that chooses nothing."""
    indices = torch.randint(keys, shape, dtype=torch.int32)
    indices[..., -1] = indices[..., 0]
    indices[..., 1] = -1
    indices[:, ..., ::3, 2] = keys + 4
    indices[0, ..., 4, :] = -1
    return indices


def assert_as_dense(got: Tensor, want: Tensor, tensors: tuple[Tensor, ...]) -> None:
    """Outputs and gradients agree with the oracle's to what a few float32 roundings of such sums make."""
    weight = torch.randn(want.shape, dtype=torch.float64)
    expected = torch.autograd.grad((want * weight).sum(), tensors)
    found = torch.autograd.grad((got.double() * weight).sum(), tensors)
    limit = 64 * torch.finfo(got.dtype).eps
    for a, b in zip((got, *found), (want, *expected), strict=True):
        assert (a.double() - b.double()).abs().max() <= limit * b.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("keys", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [False, True], ids=["one choice", "a choice a key head"])
@pytest.mark.parametrize("mask", [None, "bool", "added"])
def test_it_is_dense_attention_under_a_mask_of_the_choice(keys: int, dtype: torch.dtype, own: bool, mask: str) -> None:
    q, k, v = tensors = inputs(keys, dtype=dtype)
    indices = choices(keys, 2, 2, 9, 5) if own else choices(keys, 2, 9, 5)
    seen = None if mask is None else torch.rand(2, 1, 9, keys + 3) < 0.7
    seen = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min) if mask == "added" else seen
    selection = Selection(indices, mask=seen)
    assert Layout.of(given(q, k, v, selection)).gathers == (keys == 700)
    got = indexed_attention(q, k, v, selection)
    assert not got[0, 4].any()  # who chooses nothing gets zeros
    assert_as_dense(got, oracle(q, k, v, dense_mask(selection, keys)), tensors)


@pytest.mark.parametrize("keys", [30, 1030])
def test_blocks_are_their_keys(keys: int) -> None:
    """The last block is cut short, and -1 is no block."""
    q, k, v = tensors = inputs(keys, heads=8)
    selection = Selection(choices(-(-keys // 4), 2, 2, 9, 4), block_size=4, mask=torch.rand(1, 1, 1, keys) < 0.9)
    assert Layout.of(given(q, k, v, selection)).gathers == (keys == 1030)
    assert_as_dense(indexed_attention(q, k, v, selection), oracle(q, k, v, dense_mask(selection, keys)), tensors)


@pytest.mark.parametrize("keys", LENGTHS.values(), ids=LENGTHS)
def test_sinks_and_softcap_are_as_in_dense_attention(keys: int) -> None:
    q, k, v = inputs(keys)
    sinks, selection = torch.randn(4, requires_grad=True), Selection(choices(keys, 2, 9, 5))
    settings = {"scaling": 1.5, "softcap": 2.0, "sinks": sinks}
    want = oracle(q, k, v, dense_mask(selection, keys), **settings)
    assert_as_dense(indexed_attention(q, k, v, selection, **settings), want, (q, k, v, sinks))


@pytest.mark.parametrize("keys", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_its_roundings(keys: int, dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in inputs(keys, dtype=dtype))
    selection = Selection(choices(keys, 2, 9, 5))
    got, want = indexed_attention(q, k, v, selection), oracle(q, k, v, dense_mask(selection, keys))
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("keys", LENGTHS.values(), ids=LENGTHS)
def test_blocks_of_queries_do_not_show(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors = inputs(keys)
    selection = Selection(choices(keys, 2, 9, 5), mask=torch.rand(2, 1, 9, keys) < 0.7)
    monkeypatch.setitem(ELEMENTS, "cpu", 1000)
    assert Layout.of(given(q, k, v, selection)).step < 9
    assert_as_dense(indexed_attention(q, k, v, selection), oracle(q, k, v, dense_mask(selection, keys)), tensors)


@pytest.mark.parametrize("keys", LENGTHS.values(), ids=LENGTHS)
def test_order_and_repetition_change_no_bit(keys: int) -> None:
    q, k, v = inputs(keys)
    indices = choices(keys, 2, 9, 5)
    shuffled = torch.cat([indices, indices[..., :2]], dim=-1)[..., torch.tensor([6, 2, 0, 5, 3, 1, 4])]
    first, second = (indexed_attention(q, k, v, Selection(x)) for x in (indices, indices[..., [4, 2, 0, 3, 1]]))
    assert torch.equal(first, second)
    torch.testing.assert_close(indexed_attention(q, k, v, Selection(shuffled)), first)


def test_dropout_drops_the_same_pairs_backward_as_forward() -> None:
    """The gradient of a sum over v counts what each value was weighted with: v times it is the output again."""
    for keys in LENGTHS.values():
        q, k, v = inputs(keys, dtype=torch.float64)
        selection = Selection(choices(keys, 2, 9, 5))
        whole = indexed_attention(q, k, v, selection)
        dropped = indexed_attention(q, k, v, selection, dropout=0.5)
        (grad,) = torch.autograd.grad(dropped.sum(), v)
        assert not torch.allclose(dropped, whole)
        torch.testing.assert_close((grad * v).sum(), dropped.sum())
        many = torch.stack([indexed_attention(q, k, v, selection, dropout=0.5) for _ in range(400)]).mean(0)
        assert (many - whole).abs().max() < 0.5 * whole.abs().max()


@pytest.mark.parametrize("keys", LENGTHS.values(), ids=LENGTHS)
def test_the_same_inputs_give_the_same_bits(keys: int) -> None:
    tensors = inputs(keys)
    selection = Selection(choices(keys, 2, 9, 5))
    first, second = (torch.autograd.grad(indexed_attention(*tensors, selection).sin().sum(), tensors) for _ in range(2))
    assert all(map(torch.equal, first, second))


class Largest(TorchDispatchMode):
    """Records how many numbers the largest tensor that anything made has."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for x in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(x, Tensor) and x.is_contiguous():  # not a view that repeats one number
                self.numbers = max(self.numbers, x.numel())
        return made


@pytest.mark.parametrize("chosen", [16, 400], ids=["keys are gathered", "all keys stand there"])
def test_no_tensor_has_a_place_for_each_pair(chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    length = 4096
    monkeypatch.setitem(ELEMENTS, "cpu", 2**20)
    q, k, v = inputs(length, heads=1, key_heads=1, queries=length, batch=1)
    selection = Selection(torch.randint(length, (1, length, chosen)))
    assert Layout.of(given(q, k, v, selection)).gathers == (chosen == 16)
    with Largest() as forward, torch.no_grad():
        out, lse = TILED_INDEXED.forward(given(q, k, v, selection))
    with Largest() as backward, torch.no_grad():
        TILED_INDEXED.backward(given(q, k, v, selection), Returning(out, lse, out, lse))
    limit = max(2**20, selection.indices.numel())
    assert 0 < forward.numbers <= limit < length**2
    assert 0 < backward.numbers <= limit


@pytest.mark.parametrize("keys", LENGTHS.values(), ids=LENGTHS)
def test_the_operators_are_sound(keys: int) -> None:
    q, k, v = inputs(keys)
    sinks, selection = torch.randn(4, requires_grad=True), Selection(choices(keys, 2, 9, 5))
    mask = torch.rand(2, 1, 9, keys) < 0.7
    given = q, k, v, sinks, None, selection.indices, mask, 1, False, 6, 0.5, 3.0, 0.0, None
    torch.library.opcheck(torch.ops.gossamer.attend_indexed.default, given)


def test_it_compiles_into_one_graph() -> None:
    tensors = inputs(50)
    indices = choices(50, 2, 9, 5)

    def attend(q: Tensor, k: Tensor, v: Tensor, indices: Tensor) -> Tensor:
        return indexed_attention(q, k, v, Selection(indices)).sin()

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    got, want = compiled(*tensors, indices), attend(*tensors, indices)
    assert torch.equal(got, want)
    grads = (torch.autograd.grad(x.sum(), tensors) for x in (got, want))
    assert all(map(torch.equal, *grads))


@torch.no_grad()
def test_autocast_is_kept_to() -> None:
    q, k, v = inputs(50)
    selection = Selection(choices(50, 2, 9, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = indexed_attention(q, k, v, selection)
    assert torch.equal(got, indexed_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), selection))


def test_nothing_chosen_gives_zeros() -> None:
    q, k, v = inputs(50)
    for indices in (torch.empty(2, 9, 0, dtype=torch.int64), torch.full((2, 9, 3), -1)):
        out = indexed_attention(q, k, v, Selection(indices))
        assert not out.any() and not any(x.any() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": torch.zeros(2, 8, 3, dtype=torch.int64)}, "indices is torch.int64 of shape"),
        ({"indices": torch.zeros(2, 9, 3)}, "indices is torch.float32"),
        ({"indices": torch.zeros(2, 3, 9, 3, dtype=torch.int64)}, "N divides the 2 key heads"),
        ({"mask": torch.ones(2, 9, 50)}, "mask is of shape"),
        ({"mask": torch.ones(2, 1, 9, 49)}, "mask is of shape"),
        ({"block_size": 0}, "block_size is 0"),
        ({"scaling": float("nan")}, "scale is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"sinks": torch.zeros(3)}, "sinks has"),
        ({"key": torch.zeros(2, 3, 50, 8)}, "do not fit"),
        ({"value": torch.zeros(2, 2, 50, 8, dtype=torch.float64)}, "v is torch.float64"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    q, k, v = inputs(50)
    given = {"query": q, "key": k, "value": v, "indices": torch.zeros(2, 9, 3, dtype=torch.int64)} | change
    selection = Selection(**{name: given.pop(name) for name in ("indices", "mask", "block_size") if name in given})
    with pytest.raises(ValueError, match=message):
        indexed_attention(selection=selection, **given)
