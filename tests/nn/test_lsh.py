"""`LSHAttention`: equal to Hugging Face's, any length, rounds at will, and a hash that can be repeated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.nn import LSHAttention
from gossamer.selectors import LSH

WIDTH, HEADS, HEAD, CHUNK = 24, 2, 16, 8


def layer(lsh: LSH, dtype: torch.dtype = torch.float64) -> LSHAttention:
    return LSHAttention(WIDTH, HEADS, lsh, head_width=HEAD).to(dtype)


HUGGING_FACE = {
    "causal, one round": (LSH.trax(1, CHUNK, 8), None),
    "causal": (LSH.trax(3, CHUNK, (4, 6)), None),
    "both ways": (LSH.trax(2, CHUNK, 8, causal=False, after=1), None),
    "two chunks before": (LSH.trax(2, CHUNK, 4, before=2), None),
    "padded": (LSH.trax(2, CHUNK, 8), ((0, 33), (5, 48))),
    "padded, both ways": (LSH.trax(2, CHUNK, 8, causal=False, before=0, after=1), ((0, 33), (5, 48))),
}


def hugging_face(lsh: LSH, dtype: torch.dtype):
    """transformers' layer of the same settings, that hashes by the seed 7."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    config = transformers.ReformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_head_size=HEAD, attn_layers=["lsh"],
        lsh_attn_chunk_length=lsh.chunk, num_hashes=lsh.rounds, is_decoder=lsh.causal, hash_seed=7,
        num_buckets=list(lsh.buckets) if isinstance(lsh.buckets, tuple) else lsh.buckets,
        lsh_num_chunks_before=lsh.before, lsh_num_chunks_after=lsh.after, lsh_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return LSHSelfAttention(config, 0).to(dtype)


def run_both(name: str, theirs_dtype: torch.dtype, ours_dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """(ours, theirs) of outputs and of the gradients of input and weights, with their buckets handed over."""
    lsh, within = HUGGING_FACE[name]
    theirs, ours = hugging_face(lsh, theirs_dtype), layer(lsh, ours_dtype)
    ours.load_state_dict(
        {
            "query_key.weight": theirs.query_key.weight,
            "value.weight": theirs.value.weight,
            "dense.weight": torch.eye(HEADS * HEAD)[:WIDTH],
        }
    )
    x = torch.randn(2, 48, WIDTH, dtype=theirs_dtype)
    real, mask, span = torch.ones(2, 48, 1, dtype=torch.bool), None, None
    if within is not None:
        span, position = torch.tensor(within, dtype=torch.int32), torch.arange(48)
        real = ((position >= span[:, :1]) & (position < span[:, 1:]))[..., None]
        mask = real[..., 0].long()
    of_theirs, of_ours = (x.to(dtype).clone().requires_grad_() for dtype in (theirs_dtype, ours_dtype))
    right = theirs(of_theirs, attention_mask=mask)
    found = ours(of_ours, within=span, buckets=right.buckets)
    grad = torch.randn_like(right.hidden_states[..., :WIDTH]) * real
    (right.hidden_states[..., :WIDTH] * grad).sum().backward()
    (found * grad.to(ours_dtype)).sum().backward()
    pairs = [(found * real, right.hidden_states[..., :WIDTH] * real), (of_ours.grad, of_theirs.grad)]
    return [*pairs, *((getattr(ours, w).weight.grad, getattr(theirs, w).weight.grad) for w in ("query_key", "value"))]


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_it_is_hugging_face_s_layer_with_its_buckets(name: str) -> None:
    for found, right in run_both(name, torch.float64, torch.float64):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_in_float32_it_is_what_hugging_face_s_is_in_float64(name: str) -> None:
    for found, right in run_both(name, torch.float64, torch.float32):
        torch.testing.assert_close(found.double(), right, rtol=0, atol=1e-4)


def test_hugging_face_s_float32_is_off_where_a_token_is_alone_in_several_rounds() -> None:
    """Its log-sum-exps near -1e5 have 1/128 as their unit, so that the shares of rounds do not add up to one.

    With one round they do, and everything is equal to 1e-4.
    """
    for found, right in run_both("causal, one round", torch.float32, torch.float32):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-4)
    (found, right), *_ = run_both("causal", torch.float32, torch.float32)
    off = (found - right).abs().amax(-1)
    assert (off[:, 0] > 1e-4).all()  # the first token sees itself alone
    share = (right / found)[:, 0]
    torch.testing.assert_close(share, share[:1, :1].expand_as(share), rtol=1e-4, atol=0)
    assert 1e-3 < abs(share[0, 0] - 1) < 8e-3
    assert off.le(1e-4).sum() > 80  # of 96


def test_the_hash_is_hugging_face_s_by_the_same_draw() -> None:
    for name in ("causal", "both ways"):
        lsh, _ = HUGGING_FACE[name]
        theirs, ours = hugging_face(lsh, torch.float32), layer(lsh, torch.float32)
        ours.query_key.load_state_dict(theirs.query_key.state_dict())
        x = torch.randn(2, 48, WIDTH)
        first = torch.arange(lsh.rounds)[:, None] * lsh.most(48)
        torch.manual_seed(7)
        assert torch.equal(ours.draw(x), theirs(x).buckets - first)


@pytest.mark.parametrize("chunk", [16, 64])
def test_hugging_face_chooses_as_many_buckets_where_none_are_given(chunk: int) -> None:
    """At its default of 4096 positions, which play a part in it where chunks are smaller than 16."""
    lsh = LSH.trax(1, chunk)
    for length in (64, 100, 500, 1000, 3000, 4096, 65536):
        theirs = hugging_face(lsh, torch.float32)
        theirs._set_num_buckets(length)
        chosen = theirs.num_buckets
        assert lsh.bucket_counts(length) == (tuple(chosen) if isinstance(chosen, list) else (chosen,))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 50])
@pytest.mark.parametrize("lsh", [LSH.paper(2, CHUNK), LSH.trax(2, CHUNK), LSH.lucidrains(2, CHUNK)], ids=str)
def test_any_length_will_do(lsh: LSH, length: int) -> None:
    x = torch.randn(2, length, WIDTH, dtype=torch.float64, requires_grad=True)
    out = layer(lsh)(x)
    out.sum().backward()
    assert out.shape == x.shape and out.isfinite().all() and x.grad.isfinite().all()


def test_a_hash_that_was_drawn_repeats_a_call() -> None:
    attention, x = layer(LSH.paper(2, CHUNK)), torch.randn(2, 48, WIDTH, dtype=torch.float64)
    buckets = attention.draw(x)
    assert buckets.shape == (2, HEADS, 2, 48) and not buckets.requires_grad
    assert torch.equal(attention(x, buckets=buckets), attention(x, buckets=buckets))
    assert not torch.equal(attention(x), attention(x))


def test_rounds_may_be_changed() -> None:
    attention, x = layer(LSH.paper(2, CHUNK)), torch.randn(1, 48, WIDTH, dtype=torch.float64)
    attention.rounds = 5
    assert attention.lsh.rounds == 5 and attention.draw(x).shape == (1, HEADS, 5, 48)
    with pytest.raises(ValueError, match="rounds is 0"):
        attention.rounds = 0


def test_more_rounds_come_closer_to_full_attention() -> None:
    attention = layer(LSH.paper(1, CHUNK))
    x = torch.randn(1, 64, WIDTH, dtype=torch.float64) * 3
    full = LSHAttention(WIDTH, HEADS, LSH.paper(1, 64, 1), head_width=HEAD).to(torch.float64)
    full.load_state_dict(attention.state_dict())
    right, errors = full(x), []
    for attention.rounds in (1, 4, 16):
        errors.append(torch.stack([(attention(x) - right).norm() for _ in range(8)]).mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_what_fits_one_chunk_is_attended_to_in_full() -> None:
    short, long = layer(LSH.trax(3, 64)), layer(LSH.paper(1, 64, 1))
    long.load_state_dict(short.state_dict())
    x = torch.randn(2, 50, WIDTH, dtype=torch.float64)
    assert torch.equal(short(x), short(x)), "a hash is drawn where none is needed"
    torch.testing.assert_close(short(x), long(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(short(x), short(x, buckets=short.draw(x)), rtol=1e-12, atol=1e-12)


def test_no_gradient_passes_through_the_hash() -> None:
    """With the buckets held, the gradient is the derivative; drawing them inside changes nothing about it."""
    attention, x = layer(LSH.paper(2, CHUNK)), torch.randn(1, 40, WIDTH, dtype=torch.float64)
    torch.manual_seed(3)
    buckets = attention.draw(x)
    gradients = []
    for given in (buckets, None):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        attention(leaf, buckets=given).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="LSHAttention: width is 10; give a multiple of the 4 heads, or head_width"):
        LSHAttention(10, 4, LSH.trax(1, 8))
    with pytest.raises(ValueError, match="heads"):
        LSHAttention(8, 0, LSH.trax(1, 8))


@pytest.mark.parametrize("lsh", [LSH.paper(2, CHUNK), LSH.trax(2, CHUNK)], ids=["paper", "trax"])
def test_it_compiles_as_one_graph(lsh: LSH) -> None:
    torch.compiler.reset()
    attention, x = layer(lsh), torch.randn(2, 40, WIDTH, dtype=torch.float64, requires_grad=True)
    buckets = attention.draw(x)
    compiled = torch.compile(lambda x, buckets: attention(x, buckets=buckets), backend="aot_eager", fullgraph=True)
    within = torch.tensor([[0, 30], [7, 40]], dtype=torch.int32)
    drawing = torch.compile(lambda x: attention(x, within=within), backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (compiled, lambda x, buckets: attention(x, buckets=buckets)):
        (grad,) = torch.autograd.grad(function(x, buckets).square().sum(), x)
        gradients.append(grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert drawing(x).shape == x.shape
    torch.compiler.reset()
