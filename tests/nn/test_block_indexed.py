"""`BlockIndexedAttention`: transformers' MiniMax-M3 with its weights, the formula in dense, no leak, and pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import Causal, attend
from gossamer.config import RotaryConfig
from gossamer.indexed import Selection, attention_mass
from gossamer.nn.block_indexed import BlockIndexedAttention, BlockIndexer
from gossamer.nn.partial_rotary import turned_first
from gossamer.nn.whole_cache import WholeCache
from gossamer.selectors.block_topk import BlockTopK
from tests.causal_modules import (
    check_gradients_reach,
    check_indexer_learns,
    check_no_leak,
    check_picked,
    check_pieces,
    check_slope,
)

SHAPE = {"width": 24, "heads": 4, "key_heads": 2, "head_width": 12, "index_width": 10, "rotary_width": 6}
ROTARY = RotaryConfig(theta=5_000_000.0)
FEW = BlockTopK(8, 2)


def layer(choice: BlockTopK = FEW, dtype: torch.dtype = torch.float64) -> BlockIndexedAttention:
    torch.manual_seed(0)
    made = BlockIndexedAttention(**SHAPE, choice=choice).to(dtype)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.uniform_(-0.5, 1.0)
    return made


def inputs(length: int = 50) -> Tensor:
    return torch.randn(2, length, 24, dtype=torch.float64)


@pytest.mark.parametrize("choice", [BlockTopK(8, 2), BlockTopK(8, 3, local=2), BlockTopK(16, 1)], ids=str)
@pytest.mark.parametrize("length", [1, 9, 61])
def test_it_is_transformers_layer(choice: BlockTopK, length: int) -> None:
    m3 = pytest.importorskip("transformers.models.minimax_m3_vl.modeling_minimax_m3_vl")
    config = m3.MiniMaxM3VLTextConfig(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=12, num_hidden_layers=1,
        rotary_dim=6, index_n_heads=2, index_head_dim=10, index_block_size=choice.size,
        index_topk_blocks=choice.count, index_local_blocks=choice.local, layer_types=["minimax_m3_sparse"],
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
        attn_implementation="eager",
    )  # fmt: skip
    ours, theirs = layer(choice, torch.float32), m3.MiniMaxM3VLAttention(config, 0)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, length, 24)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    turns = m3.MiniMaxM3VLRotaryEmbedding(config)(x, torch.arange(length)[None])
    found, right = ours(a), theirs(b, turns, None)[0]
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(found)
    found.backward(grad)
    right.backward(grad)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def in_dense(made: BlockIndexedAttention, x: Tensor) -> Tensor:
    """A token's index scores, their blocks' highest, the chosen blocks' mask, softmax; by loops over queries."""
    length, choice = x.shape[1], made.indexer.choice
    at = torch.arange(length)
    q, k, v = made.project(x)
    q, k = (turned_first(norm(each), at, ROTARY, 6) for norm, each in ((made.q_norm, q), (made.k_norm, k)))
    index_q, index_k = made.indexer.project(x)
    seen = torch.zeros(2, 2, length, length, dtype=torch.bool)
    for b, g, t in torch.cartesian_prod(torch.arange(2), torch.arange(2), at).tolist():
        scores = index_q[b, g, t] @ index_k[b, : t + 1].T
        blocks = [scores[first : first + choice.size].max().item() for first in range(0, t + 1, choice.size)]
        past = sorted(range(len(blocks) - 1), key=lambda m: (-blocks[m], m))[: choice.count - 1]
        for m in [*past, len(blocks) - 1]:
            seen[b, g, t, m * choice.size : min((m + 1) * choice.size, t + 1)] = True
    k, v, seen = (each.repeat_interleave(2, 1) for each in (k, v, seen))
    scores = (q @ k.mT * 12**-0.5).masked_fill(~seen, -torch.inf)
    return made.merge(scores.softmax(-1) @ v)


@pytest.mark.parametrize("length", [1, 8, 50])
def test_it_is_the_formula(length: int) -> None:
    made, x = layer(), inputs(length)
    with torch.no_grad():
        torch.testing.assert_close(made(x), in_dense(made, x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("choice", [BlockTopK(8, 7), BlockTopK(64, 1)], ids=str)
def test_with_every_block_it_is_full_attention(choice: BlockTopK) -> None:
    made, x = layer(choice), inputs()
    q, k, v = made.project(x)
    q, k = (
        turned_first(norm(each), torch.arange(50), ROTARY, 6) for norm, each in ((made.q_norm, q), (made.k_norm, k))
    )
    torch.testing.assert_close(made(x), made.merge(attend(q, k, v, Causal())), rtol=1e-9, atol=1e-11)


def test_the_indexer_alone_chooses_what_the_layer_sees() -> None:
    made, x = layer(), inputs()
    found = made.indexer(x)
    assert found.indices.shape == (2, 2, 50, 2) and found.block_size == 8 and found.causal
    assert not torch.equal(found.indices[:, 0], found.indices[:, 1])  # each key head has its own
    assert not found.indices.requires_grad


def test_nothing_of_the_future_is_seen() -> None:
    check_no_leak(layer(), inputs(40), range(40))


@pytest.mark.parametrize("pieces", [[1] * 50, [20, 1, 29], [50]], ids=str)
def test_pieces_through_a_cache_equal_the_whole(pieces: list[int]) -> None:
    check_pieces(layer(), WholeCache, inputs(), pieces)


def test_a_cache_goes_on_with_picked_sequences() -> None:
    check_picked(layer(), WholeCache, inputs(), 30)


def test_gradients_reach_all_but_the_indexer_and_are_slopes() -> None:
    made = layer()
    check_gradients_reach(made, made(inputs()), but=["indexer."])
    check_slope(made, inputs(20))


def test_the_defaults_are_minimax_s() -> None:
    made = BlockIndexedAttention(64, 4, 4)
    assert (made.head_width, made.rotary, made.indexer.choice) == (128, ROTARY, BlockTopK(128, 16))
    assert made.indexer.k_proj.out_features == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_heads": 3}, "BlockIndexedAttention: heads is 4 and key_heads is 3"),
        ({"head_width": 0}, "BlockIndexedAttention: head_width is 0"),
        ({"rotary_width": 5}, "rotary_width is 5; give an even number of at most 12"),
        ({"rotary_width": 12}, "BlockIndexer: rotary_width is 12; give an even number of at most 10"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockIndexedAttention(**{**SHAPE, **options})


def test_an_indexer_needs_sizes() -> None:
    with pytest.raises(ValueError, match="BlockIndexer: index_width is 0"):
        BlockIndexer(24, 2, index_width=0)


def test_each_index_head_learns_from_its_group_alone() -> None:
    made = layer()
    x = torch.randn(2, 50, 24, dtype=torch.float64, requires_grad=True)
    out, seen = made(x, return_intermediate=True)
    assert torch.equal(out, made(x)) and len(seen) == 2
    blocks = made.indexer(x)
    for g, part in enumerate(seen):
        assert part.q.shape == (2, 2, 50, 12) and part.k.shape == (2, 1, 50, 12)
        one = Selection(blocks.indices[:, g], 8, causal=True)
        assert torch.equal(part.selection.strip(0, 50, 50), one.strip(0, 50, 50))
        hidden = ~one.strip(0, 50, 50)
        shares = (part.q @ part.k.mT * 12**-0.5).masked_fill(hidden, -torch.inf).softmax(-1).mean(1)
        mass = attention_mass(part.q, part.k, part.lse, part.selection, part.scale)
        chosen = part.selection.indices[:, 0].long()
        right = shares.gather(2, chosen.clamp(0, 49)).masked_fill((chosen < 0) | (chosen > 49), 0.0)
        torch.testing.assert_close(mass, right, rtol=1e-9, atol=1e-11)
    check_indexer_learns(made, seen, relu=False)
