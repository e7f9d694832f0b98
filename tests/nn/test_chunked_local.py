"""`ChunkedLocalAttention` is the local attention of Hugging Face's Reformer, padded or not."""

from __future__ import annotations

import pytest
import torch
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LocalSelfAttention

from gossamer.nn.chunked_local import ChunkedLocalAttention

WIDTH, HEADS, HEAD, CHUNK = 20, 2, 6, 8
CASES = {
    "causal": {"causal": True},
    "causal, two before": {"causal": True, "before": 2},
    "causal, alone": {"causal": True, "before": 0},
    "circle": {"causal": False},
    "circle, both sides": {"causal": False, "before": 1, "after": 1},
    "circle, two before": {"causal": False, "before": 2, "after": 1},
    "circle, ahead": {"causal": False, "before": 0, "after": 2},
    "alone": {"causal": False, "before": 0},
}
every_case = pytest.mark.parametrize("name", CASES)


def layers(name: str, dropout: float = 0.0) -> tuple[ChunkedLocalAttention, LocalSelfAttention]:
    """A layer of ours, and theirs with the same weights; both in float64."""
    torch.manual_seed(0)
    case = {"before": 1, "after": 0, **CASES[name]}
    ours = ChunkedLocalAttention(WIDTH, HEADS, chunk=CHUNK, head_width=HEAD, dropout=dropout, **case).double()
    config = ReformerConfig(
        attn_layers=["local"],
        hidden_size=WIDTH,
        axial_pos_embds_dim=(4, 16),
        num_attention_heads=HEADS,
        attention_head_size=HEAD,
        local_attn_chunk_length=CHUNK,
        local_num_chunks_before=case["before"],
        local_num_chunks_after=case["after"],
        local_attention_probs_dropout_prob=dropout,
        is_decoder=case["causal"],
    )
    theirs = LocalSelfAttention(config, layer_idx=0).double()
    for part in ("query", "key", "value"):
        getattr(theirs, part).load_state_dict(getattr(ours, part).state_dict())
    return ours, theirs


@every_case
@pytest.mark.parametrize("length", [1, 5, 8, 32, 56])
def test_it_is_hugging_face_s(name: str, length: int) -> None:
    ours, theirs = layers(name)
    x = torch.randn(2, length, WIDTH, dtype=torch.float64, requires_grad=True)
    found, wanted = ours(x), ours.dense(theirs(x).hidden_states)
    torch.testing.assert_close(found, wanted)
    leaves = [x, ours.query.weight, ours.key.weight, ours.value.weight]
    other = [x, theirs.query.weight, theirs.key.weight, theirs.value.weight]
    for a, b in zip(
        torch.autograd.grad(found.sin().sum(), leaves), torch.autograd.grad(wanted.sin().sum(), other), strict=True
    ):
        torch.testing.assert_close(a, b)


@every_case
@pytest.mark.parametrize(("first", "last"), [(0, 30), (11, 32), (9, 17)])
def test_padding_is_hugging_face_s_mask(name: str, first: int, last: int) -> None:
    ours, theirs = layers(name)
    x = torch.randn(2, 32, WIDTH, dtype=torch.float64)
    within = torch.tensor([[first, last], [0, 32]], dtype=torch.int32)
    position = torch.arange(32)
    mask = (position >= within[:, :1]) & (position < within[:, 1:])
    found, wanted = ours(x, within=within), ours.dense(theirs(x, attention_mask=mask).hidden_states)
    torch.testing.assert_close(found[mask], wanted[mask])
    assert not found[~mask].any()


@every_case
@pytest.mark.parametrize("length", [25, 31])
def test_a_last_chunk_may_be_short(name: str, length: int) -> None:
    ours, theirs = layers(name)
    x = torch.randn(1, 32, WIDTH, dtype=torch.float64)
    mask = torch.arange(32)[None] < length
    wanted = ours.dense(theirs(x, attention_mask=mask).hidden_states)
    torch.testing.assert_close(ours(x[:, :length]), wanted[:, :length])


def test_dropout_acts_in_training_alone() -> None:
    ours, _ = layers("causal", dropout=0.5)
    x = torch.randn(1, 20, WIDTH, dtype=torch.float64)
    assert not torch.equal(ours(x), ours(x))
    ours.eval()
    assert torch.equal(ours(x), ours(x))
    assert ours.draw(x) is None


def test_too_few_chunks_for_a_circle_are_refused() -> None:
    ours, _ = layers("circle, both sides")
    with pytest.raises(ValueError, match="16 tokens are 2 chunks, of which a query is to see 3; give at least 17 tok"):
        ours(torch.zeros(1, 16, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 0}, "chunk is 0; give an integer of at least 1"),
        ({"chunk": 8, "before": -1}, "before is -1; .* at least 0"),
        ({"chunk": 8, "after": 1}, "after is 1, but a causal layer sees nothing ahead; give 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ChunkedLocalAttention: {message}"):
        ChunkedLocalAttention(16, 2, **settings)


def test_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="buckets is a tensor, but nothing is hashed here; give None"):
        layers("causal")[0](torch.zeros(1, 8, WIDTH), buckets=torch.zeros(1))
