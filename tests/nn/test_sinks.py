"""`SinkAttention`: transformers' gpt-oss with its weights, attention without sinks times a sigmoid, and pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import Causal, Pattern, Window, attend
from gossamer.nn.layer_cache import LayerCache
from gossamer.nn.sinks import GPT_OSS, SinkAttention
from tests.causal_modules import check_gradients_reach, check_no_leak, check_pieces, check_slope

PATTERNS = {"sliding_attention": Causal() & Window(8), "full_attention": Causal()}
every_kind = pytest.mark.parametrize("kind", PATTERNS)


def layer(kind: str, dtype: torch.dtype = torch.float64) -> SinkAttention:
    torch.manual_seed(0)
    made = SinkAttention(24, 4, 2, PATTERNS[kind], head_width=8).to(dtype)
    torch.nn.init.normal_(made.sinks)
    return made


def inputs(length: int = 40) -> Tensor:
    return 3.0 * torch.randn(2, length, 24, dtype=torch.float64)


@every_kind
def test_it_is_attention_without_sinks_times_a_sigmoid(kind: str) -> None:
    made, x = layer(kind), inputs()
    q, k, v = made.project_at(x, 0)
    out, lse = attend(q, k, v, made.pattern, return_lse=True)
    right = made.merge(out * (lse - made.sinks[:, None]).sigmoid()[..., None])
    torch.testing.assert_close(made(x), right, rtol=1e-10, atol=1e-11)
    leaves = list(made.parameters())
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (made(x), right)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@every_kind
def test_a_sink_of_minus_infinity_is_none(kind: str) -> None:
    made, x = layer(kind), inputs()
    torch.nn.init.constant_(made.sinks, -torch.inf)
    right = made.merge(attend(*made.project_at(x, 0), made.pattern))
    torch.testing.assert_close(made(x), right, rtol=1e-12, atol=1e-12)


@every_kind
def test_it_is_transformers_layer(kind: str) -> None:
    oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    config = oss.GptOssConfig(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=1,
        sliding_window=8, layer_types=[kind], rope_parameters={"rope_type": "default", "rope_theta": 150_000.0},
        attn_implementation="eager",
    )  # fmt: skip
    ours, theirs = layer(kind).double(), oss.GptOssAttention(config, 0).double()
    theirs.load_state_dict(ours.state_dict())
    x, at = inputs(), torch.arange(40)
    hidden = torch.zeros(40, 40).masked_fill(~torch.from_numpy(PATTERNS[kind].dense_mask(40)), -torch.inf)
    turns = oss.GptOssRotaryEmbedding(config)(x.float(), at[None])
    right = theirs(x, tuple(turn.double() for turn in turns), hidden[None, None].double())[0]
    torch.testing.assert_close(ours(x), right, rtol=1e-5, atol=1e-5)  # its angles are float32


@every_kind
def test_nothing_of_the_future_is_seen(kind: str) -> None:
    check_no_leak(layer(kind), inputs(), range(0, 40, 3))


@every_kind
@pytest.mark.parametrize("pieces", [[1] * 40, [17, 1, 22], [40]], ids=str)
def test_pieces_through_a_cache_equal_the_whole(kind: str, pieces: list[int]) -> None:
    with torch.no_grad():
        check_pieces(layer(kind), lambda: LayerCache(PATTERNS[kind]), inputs(), pieces)


@every_kind
def test_gradients_reach_every_parameter_and_are_slopes(kind: str) -> None:
    made = layer(kind)
    check_gradients_reach(made, made(inputs()))
    check_slope(made, inputs(20))


@pytest.mark.parametrize(("pattern", "seen"), [(GPT_OSS[0], 128), (GPT_OSS[1], 300)], ids=str)
def test_the_patterns_of_gpt_oss(pattern: Pattern, seen: int) -> None:
    assert pattern.dense_mask(300)[-1].sum() == seen
    assert SinkAttention(24, 4, 2).pattern == GPT_OSS[0] and SinkAttention(24, 4, 2).head_width == 64
