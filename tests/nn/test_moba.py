"""`MoBAAttention`: a choice for each query head, full attention at the limit, no leak, and pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import Causal, attend
from gossamer.config import RotaryConfig
from gossamer.nn.moba import MoBAAttention
from gossamer.nn.whole_cache import WholeCache
from gossamer.selectors.moba import moba_selection
from tests.causal_modules import check_gradients_reach, check_no_leak, check_picked, check_pieces, check_slope

every_grouping = pytest.mark.parametrize("key_heads", [4, 2, 1])


def layer(key_heads: int, **options: object) -> MoBAAttention:
    torch.manual_seed(0)
    return MoBAAttention(24, 4, key_heads, **{"block": 8, "count": 2, **options}).double()


def inputs(length: int = 50) -> Tensor:
    return 3.0 * torch.randn(2, length, 24, dtype=torch.float64)


def in_dense(made: MoBAAttention, x: Tensor) -> Tensor:
    """Softmax over an explicit mask, each query head with the keys of its group."""
    q, k, v = made.project_at(x, 0)
    chosen = moba_selection(q, k, made.block, made.count).indices
    block = torch.arange(x.shape[1]) // made.block
    seen = (chosen[..., None] == block).any(3).tril()  # [B, H, Q, K]
    k, v = (each.repeat_interleave(made.heads // made.key_heads, 1) for each in (k, v))
    scores = (q @ k.mT * made.head_width**-0.5).masked_fill(~seen, -torch.inf)
    return made.merge(scores.softmax(-1) @ v)


@every_grouping
@pytest.mark.parametrize("length", [1, 7, 8, 50])
def test_it_is_softmax_over_the_chosen_blocks(key_heads: int, length: int) -> None:
    made, x = layer(key_heads), inputs(length).requires_grad_()
    found, right = made(x), in_dense(made, x)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-11)
    leaves = [x, *made.parameters()]
    grads = [torch.autograd.grad(out.square().sum(), leaves) for out in (found, right)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@every_grouping
def test_heads_of_one_group_choose_for_themselves(key_heads: int) -> None:
    q, k, _ = layer(key_heads).project_at(inputs(), 0)
    chosen = moba_selection(q, k, 8, 2).indices
    assert chosen.shape == (2, 4, 50, 2) and not torch.equal(chosen[:, 0], chosen[:, 1])


@every_grouping
@pytest.mark.parametrize("options", [{"count": 7}, {"count": 99}, {"block": 64, "count": 1}], ids=str)
def test_with_every_block_it_is_full_attention(key_heads: int, options: dict[str, int]) -> None:
    made, x = layer(key_heads, **options), inputs()
    right = made.merge(attend(*made.project_at(x, 0), Causal()))
    torch.testing.assert_close(made(x), right, rtol=1e-10, atol=1e-11)


@every_grouping
def test_nothing_of_the_future_is_seen(key_heads: int) -> None:
    check_no_leak(layer(key_heads), inputs(40), range(40))


@every_grouping
@pytest.mark.parametrize("pieces", [[1] * 50, [20, 1, 29], [50]], ids=str)
def test_pieces_through_a_cache_equal_the_whole(key_heads: int, pieces: list[int]) -> None:
    check_pieces(layer(key_heads), WholeCache, inputs(), pieces)


def test_a_cache_goes_on_with_picked_sequences() -> None:
    check_picked(layer(2), WholeCache, inputs(), 30)


def test_gradients_reach_every_parameter_and_are_slopes() -> None:
    made = layer(2)
    check_gradients_reach(made, made(inputs()))
    check_slope(made, inputs(20))


def test_the_defaults_are_the_paper_s() -> None:
    made = MoBAAttention(64, 4)
    assert (made.block, made.count, made.key_heads) == (512, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((24, 4, 3), "MoBAAttention: heads is 4 and key_heads is 3; give key heads that divide the heads"),
        ((26, 4), "MoBAAttention: width is 26; give a multiple of the 4 heads, or head_width"),
        ((0, 4), "MoBAAttention: width is 0; give an integer of at least 1"),
        ((24, 4, -1), "MoBAAttention: key_heads is -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoBAAttention(*arguments)


def test_weights_of_llama_s_attention_load_as_they_are() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=6, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    theirs = llama.LlamaAttention(config, 0)
    ours = MoBAAttention(24, 4, 2, block=8, count=7, rotary=RotaryConfig(theta=500_000.0))
    ours.load_state_dict(theirs.state_dict())
    x, hidden = torch.randn(2, 50, 24), torch.full((50, 50), -torch.inf).triu(1)[None, None]
    turns = llama.LlamaRotaryEmbedding(config)(x, torch.arange(50)[None])
    torch.testing.assert_close(ours(x), theirs(x, turns, hidden)[0], rtol=1e-4, atol=1e-5)
