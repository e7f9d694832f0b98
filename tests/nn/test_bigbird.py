"""BigBird's attention: the pairs that it sees, any length, and equality with the one of transformers."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer import nn
from gossamer.config import BigBirdConfig
from gossamer.nn import bigbird
from gossamer.nn.bigbird import BigBirdAttention
from gossamer.plan import Blocks, plan
from tests import bigbird_of_transformers as transformers

BLOCK, HEADS, WIDTH = 4, 2, 32
SMALL = BigBirdConfig(hidden_size=WIDTH, num_attention_heads=HEADS, block_size=BLOCK, num_random_blocks=2)
FULL = replace(SMALL, attention_type="original_full", attention_probs_dropout_prob=0.0)
EXTRA = replace(SMALL, extra_tokens=6)
CONFIGS = {
    "internal": SMALL,
    "few to draw from": replace(SMALL, random_among=8),
    "nothing random": replace(SMALL, num_random_blocks=0),
    "extra tokens": EXTRA,
    "full": FULL,
}
LENGTHS = [1, 3, 4, 5, 16, 17, 20, 63, 64, 66]
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def made(config: BigBirdConfig = SMALL, layer: int = 0, dtype: torch.dtype = torch.float64) -> BigBirdAttention:
    torch.manual_seed(layer)
    attention = BigBirdAttention(config, layer).to(dtype)
    with torch.no_grad():  # weights that tell scores apart; the usual ones are nearly uniform attention
        for parameter in attention.parameters():
            parameter.normal_(std=0.3)
    return attention


def inputs(length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(length))


def dense(attention: BigBirdAttention, x: Tensor, times: np.ndarray) -> Tensor:
    """The definition: one softmax a row, in which each pair counts `times` [H, N, N]."""
    q, k, v = (
        project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for project in (attention.query, attention.key, attention.value)
    )
    scores = q @ k.mT * q.shape[-1] ** -0.5 + torch.from_numpy(np.log(times)).to(x)
    return attention.output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def seen(config: BigBirdConfig, length: int, layer: int = 0) -> np.ndarray:
    """[H, N, N], by the paper's words; the random blocks, which nobody can know, are read from the attention."""
    mask = BigBirdAttention(config, layer).pattern(length).dense_mask(length)
    mask = np.broadcast_to(mask, (HEADS, length, length))
    q, k = np.ogrid[:length, :length]
    if config.attention_type == "original_full":
        assert mask.all()
    elif config.extra_tokens:
        extra = config.extra_tokens
        near = (q >= extra) & (k >= extra) & (abs((q - extra) // BLOCK - (k - extra) // BLOCK) <= 1)
        assert np.array_equal(mask[0], (q < extra) | (k < extra) | near)
    else:
        last = (length - 1) // BLOCK
        fixed = np.isin(q // BLOCK, (0, last)) | np.isin(k // BLOCK, (0, last)) | (abs(q // BLOCK - k // BLOCK) <= 1)
        for own in mask:
            assert not (fixed & ~own).any()
            new = (own & ~fixed)[::BLOCK, ::BLOCK].sum(axis=1)
            assert (new <= config.num_random_blocks).all()
    return mask


@pytest.mark.filterwarnings("ignore:divide by zero")
@both
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_joint_softmax_over_its_pairs(config: BigBirdConfig, length: int) -> None:
    attention, x = made(config, layer=1), inputs(length).requires_grad_()
    right = dense(attention, x, seen(config, length, layer=1).astype(float))
    out = attention(x)
    assert torch.allclose(out, right, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad((y * y).sum(), [x, *attention.parameters()]) for y in (out, right)]
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@both
@pytest.mark.parametrize("length", [17, 64])
def test_a_token_acts_on_those_that_see_it_and_on_no_others(config: BigBirdConfig, length: int) -> None:
    attention, mask = made(config), seen(config, length).any(axis=0)
    x = inputs(length, batch=1)
    before = attention(x)
    for key in range(0, length, 3):
        other = x.clone()
        other[:, key] += 1.0
        changed = (attention(other) != before).any(-1)[0].numpy()
        assert np.array_equal(changed, mask[:, key] | (np.arange(length) == key))


@both
def test_training_and_evaluation_see_the_same(config: BigBirdConfig) -> None:
    attention, x = made(config), inputs(66)
    assert torch.equal(attention.train()(x), attention.eval()(x))


def test_full_attention_drops_weights_in_training_and_sparse_attention_does_not() -> None:
    x = inputs(66)
    for config, drops in ((FULL, True), (SMALL, False)):
        attention = made(replace(config, attention_probs_dropout_prob=0.1))
        assert torch.equal(attention.train()(x), attention.eval()(x)) != drops


def test_layers_draw_apart_and_a_seed_draws_again() -> None:
    patterns = [BigBirdAttention(SMALL, layer).pattern(66) for layer in (0, 1, 0)]
    assert patterns[0] == patterns[2] != patterns[1]
    other = replace(SMALL, random_seed=1)
    assert BigBirdAttention(other).pattern(66) != patterns[0]


def test_heads_are_one_launch_over_blocks() -> None:
    config = BigBirdConfig(hidden_size=96, num_attention_heads=12)
    made_of = plan(BigBirdAttention(config).pattern(2000), 2000, 2000, 12)
    (group,) = made_of.groups
    (term,) = group.terms
    assert isinstance(term, Blocks) and term.size == 64 and len(term.starts) == 12
    assert (term.tile == -1).all()


def test_full_lengths_are_said(caplog: pytest.LogCaptureFixture) -> None:
    bigbird._say_once.cache_clear()
    attention = made()
    with caplog.at_level(logging.WARNING, "gossamer"):
        attention(inputs(17))
        assert caplog.messages == []
        attention(inputs(16))
        made(layer=1)(inputs(8))
        made(FULL)(inputs(8))
    assert caplog.messages == ["BigBird's attention over blocks of 4 is full attention up to 16 tokens, as here"]


@pytest.mark.parametrize("config", [SMALL, EXTRA], ids=["internal", "extra tokens"])
def test_full_lengths_are_said_by_a_compiled_model_too(config: BigBirdConfig, caplog: pytest.LogCaptureFixture) -> None:
    """While it is traced, and without a break of its graph."""
    bigbird._say_once.cache_clear()
    dynamic = False if config.extra_tokens else None  # whose one graph would serve every length
    compiled = torch.compile(made(config), fullgraph=True, dynamic=dynamic, backend="eager")
    most = "14" if config.extra_tokens else "16"
    with caplog.at_level(logging.WARNING, "gossamer"):
        compiled(inputs(17))
        assert caplog.messages == []
        for length in (8, 14, 8):
            compiled(inputs(length))
    assert caplog.messages == [f"BigBird's attention over blocks of 4 is full attention up to {most} tokens, as here"]


@pytest.mark.parametrize("strict", [False, True])
def test_one_exported_graph_serves_short_and_long(strict: bool) -> None:
    """Whether a length is full attention is not asked of a length that is not known."""
    length = torch.export.Dim("length", min=2, max=4096)
    attention = made(EXTRA)
    exported = torch.export.export(attention, (inputs(50),), dynamic_shapes=({1: length},), strict=strict)
    for tokens in (9, 70):
        torch.testing.assert_close(exported.module()(inputs(tokens)), attention(inputs(tokens)))


@both
def test_is_full_is_the_truth(config: BigBirdConfig) -> None:
    attention = BigBirdAttention(config)
    for length in range(1, 50):
        assert attention.is_full(length) == bool(attention.pattern(length).dense_mask(length).all())


def test_a_thousand_random_blocks_leave_one_pair_unseen() -> None:
    """The second block and the last but one do not see each other from five blocks on: the release's rule."""
    config = replace(SMALL, num_random_blocks=1000)
    blocks = seen(config, 8 * BLOCK)[0][::BLOCK, ::BLOCK]
    assert np.argwhere(~blocks).tolist() == [[1, 6], [6, 1]]


@both
def test_padding_is_not_seen(config: BigBirdConfig) -> None:
    """Sequences of a padded batch: what lies outside them changes nothing, bit for bit."""
    attention, x = made(config), inputs(50, batch=3)
    within = torch.tensor([[0, 50], [0, 37], [9, 50]], dtype=torch.int32)
    positions = torch.arange(50)
    outside = (positions < within[:, :1]) | (positions >= within[:, 1:])
    out, other = attention(x, within), attention(x.masked_fill(outside[..., None], 7.0), within)
    assert torch.equal(out[~outside], other[~outside])
    assert torch.equal(out[0], attention(x)[0])
    assert torch.equal(out[outside], attention.output.bias.expand_as(out[outside]))


PADDED = {"right": ((0, 60), (0, 41)), "left": ((0, 60), (13, 60)), "none": ((0, 60), (0, 60))}


@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("length", [40, 57, 60])
@pytest.mark.parametrize("layer", [0, 3])
def test_it_equals_transformers_given_its_random_blocks(length: int, layer: int, padding: str) -> None:
    ours = made(layer=layer, dtype=torch.float32)
    theirs = transformers.twins(transformers.config(), ours)
    x, y = (inputs(length, dtype=torch.float32).requires_grad_() for _ in range(2))
    ends = torch.tensor(PADDED[padding]).clamp(max=length)
    positions = torch.arange(length)
    real = (positions >= ends[:, :1]) & (positions < ends[:, 1:])
    blocks = transformers.drawn_blocks(theirs.self, length + -length % BLOCK)
    out, right = ours(x, ends.int(), blocks), transformers.attended(theirs, y, real)
    assert (out - right)[real].abs().max() <= 1e-5
    for result in (out, right):
        (result[real] ** 2).sum().backward()
    assert (x.grad - y.grad)[real].abs().max() <= 1e-5 * y.grad.abs().max()
    for name in ("query", "key", "value"):
        mine, other = getattr(ours, name).weight.grad, getattr(theirs.self, name).weight.grad
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def test_without_its_random_blocks_it_does_not() -> None:
    ours = made(dtype=torch.float32)
    theirs, x = transformers.twins(transformers.config(), ours), inputs(60, dtype=torch.float32)
    assert (ours(x) - transformers.attended(theirs, x)).abs().max() > 1e-3


def block_times(drawn: np.ndarray, length: int) -> np.ndarray:
    """[H, N, N] how often transformers' sparse form counts each pair: its parts side by side in one softmax."""
    blocks = -(-length // BLOCK)
    times = np.zeros((HEADS, blocks, blocks))
    times[:, [0, -1]] = 1
    for row in range(1, blocks - 1):
        times[:, row, list({0, row - 1, row, row + 1, blocks - 1})] = 1
        for head in range(HEADS):
            np.add.at(times[head, row], drawn[head, row - 1], 1)
    return np.kron(times, np.ones((BLOCK, BLOCK)))[:, :length, :length]


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_drawn_twice_counts_twice_in_transformers_and_once_here() -> None:
    """At 1,024 tokens its plan, made for 4,096, may draw the last block, which is global already."""
    settings = transformers.config(block_size=64, max_position_embeddings=4096)
    ours = made(replace(SMALL, block_size=64), dtype=torch.float32)
    theirs, x = transformers.twins(settings, ours), inputs(1024, batch=1, dtype=torch.float32)
    drawn = transformers.drawn_blocks(theirs.self, 1024)
    assert (drawn == 15).any()
    times = np.kron(block_times(drawn, 16 * BLOCK)[:, ::BLOCK, ::BLOCK], np.ones((64, 64)))
    right, out = transformers.attended(theirs, x), ours(x, random_blocks=drawn)
    assert (right - dense(ours, x, times)).abs().max() <= 1e-5
    assert (out - dense(ours, x, times.clip(max=1))).abs().max() <= 1e-5
    assert (out - right).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_in_evaluation_transformers_counts_the_first_block_again_for_each_random_one() -> None:
    """Its random blocks are then all number 0. Here they are what training saw."""
    ours = made(dtype=torch.float32).eval()
    theirs, x = transformers.twins(transformers.config(), ours).eval(), inputs(60, dtype=torch.float32)
    times = block_times(np.zeros((HEADS, 13, 2), int), 60)
    assert times.max() == 3
    right = transformers.attended(theirs, x)
    assert (right - dense(ours, x, times)).abs().max() <= 1e-5
    blocks = transformers.drawn_blocks(theirs.train().self, 60)
    assert (ours(x, random_blocks=blocks) - transformers.attended(theirs, x)).abs().max() <= 1e-5
    assert (ours(x, random_blocks=blocks) - right).abs().max() > 1e-3


def test_padding_that_scores_high_is_seen_in_transformers_and_not_here() -> None:
    """Its masks add -10,000, which a larger score outweighs."""
    ours = made(dtype=torch.float32)
    theirs, x = transformers.twins(transformers.config(), ours), inputs(60, dtype=torch.float32)
    real = torch.arange(60).expand(2, 60) < 41
    within, blocks = torch.tensor([[0, 41]] * 2, dtype=torch.int32), transformers.drawn_blocks(theirs.self, 60)
    loud = torch.where(real[..., None], x, 1e5 * x)
    quiet, right = ours(x, within, blocks)[real], transformers.attended(theirs, x, real)[real]
    assert (quiet - right).abs().max() <= 1e-5
    assert torch.equal(ours(loud, within, blocks)[real], quiet)
    assert (transformers.attended(theirs, loud, real)[real] - right).abs().max() > 1e3


@pytest.mark.parametrize("length", [1, 9, 16])
def test_where_it_is_full_it_equals_the_full_attention_of_transformers(length: int) -> None:
    ours = made(dtype=torch.float32)
    theirs = transformers.twins(transformers.config(attention_type="original_full"), ours)
    x = inputs(length, dtype=torch.float32)
    assert ours.is_full(length)
    assert (ours(x) - theirs.output.dense(theirs.self(x)[0])).abs().max() <= 1e-5
    full = made(FULL, dtype=torch.float32).eval()
    long = inputs(66, dtype=torch.float32)
    assert (full(long) - theirs.output.dense(theirs.self(long)[0])).abs().max() <= 1e-5


REFUSED = {
    "too few rows": np.zeros((2, 13, 2), int),
    "too many heads": np.zeros((3, 14, 2), int),
    "no integers": np.zeros((2, 14, 2)),
    "beyond the sequence": np.full((2, 14, 2), 16),
    "negative": np.full((2, 14, 2), -1),
}


@pytest.mark.parametrize("blocks", REFUSED.values(), ids=REFUSED)
def test_random_blocks_that_do_not_fit_are_refused(blocks: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"random_blocks has shape .*; give integers \[2 heads, 14 blocks, any number\]"
    ):
        made()(inputs(64), random_blocks=blocks)


@pytest.mark.parametrize("config", [FULL, EXTRA], ids=["full", "extra tokens"])
def test_random_blocks_are_refused_where_nothing_is_random(config: BigBirdConfig) -> None:
    with pytest.raises(ValueError, match="nothing is random in this attention; leave it out"):
        made(config)(inputs(64), random_blocks=np.zeros((2, 14, 2), int))


@pytest.mark.parametrize("config", [SMALL, EXTRA], ids=["internal", "extra tokens"])
def test_it_compiles_whole(config: BigBirdConfig) -> None:
    torch.compiler.reset()  # a process compiles one function a limited number of times
    attention, within = made(config), torch.tensor([[0, 50], [3, 41]], dtype=torch.int32)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    for length in (50, 61):
        x = inputs(length)
        assert torch.equal(compiled(x, within), attention(x, within))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 4e-6), (torch.bfloat16, 2.5e-2)], ids=str)
@pytest.mark.parametrize("shape", [{}, {"extra_tokens": 70}, {"random_among": 6}, {"block_size": 128}], ids=str)
def test_on_a_gpu_it_is_the_joint_softmax_too(shape: dict[str, int], dtype: torch.dtype, bound: float) -> None:
    """Against float64 on the CPU; the bound is about three times what was seen."""
    config = BigBirdConfig(**{"hidden_size": 128, "num_attention_heads": HEADS} | shape)
    torch.manual_seed(0)
    ours = BigBirdAttention(config, layer=1).to(dtype)
    right = BigBirdAttention(config, layer=1).double()
    right.load_state_dict(ours.state_dict())
    x, grad = torch.randn(2, 2, 1000, 128).to(dtype)
    within = torch.tensor([[0, 1000], [37, 901]], dtype=torch.int32)
    positions = torch.arange(1000)
    real = ((positions >= within[:, :1]) & (positions < within[:, 1:]))[..., None]
    found, wanted = [], []
    for attention, device, kept in ((ours.cuda(), "cuda", found), (right, "cpu", wanted)):
        leaf = x.detach().to(device, next(attention.parameters()).dtype).requires_grad_()
        out = attention(leaf, within.to(device))
        out.backward((grad * real).to(out))
        kept += [out.detach().cpu().double() * real, leaf.grad.cpu().double()]
    for own, other in zip(found, wanted, strict=True):
        assert (own - other).abs().max() <= bound * other.abs().max()


def test_it_can_be_found() -> None:
    assert nn.BigBirdAttention is BigBirdAttention
