import pytest
import torch

from gossamer.config import GPT2Config
from gossamer.nn.cache import KVCache
from gossamer.nn.dense import CausalSelfAttention

SHAPE = GPT2Config(n_head=4, n_embed=32)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return CausalSelfAttention(SHAPE).double().eval()


def by_hand(layer, x):
    """Softmax attention as the formula writes it, one head at a time."""
    q, k, v = layer.c_attn(x).chunk(3, dim=-1)
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    heads = []
    for qh, kh, vh in zip(q.split(8, dim=-1), k.split(8, dim=-1), v.split(8, dim=-1), strict=True):
        scores = (qh @ kh.transpose(1, 2) / 8**0.5).masked_fill(future, -torch.inf)
        heads.append(scores.softmax(dim=-1) @ vh)
    return layer.c_proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("length", [1, 2, 17])
def test_equals_the_formula(layer, length):
    x = torch.randn(2, length, 32, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_hand(layer, x))


def test_no_token_sees_a_later_one(layer):
    x = torch.randn(1, 12, 32, dtype=torch.float64)
    changed = x.clone()
    changed[:, 7:] = 100 * torch.randn(1, 5, 32, dtype=torch.float64)
    assert torch.equal(layer(x)[:, :7], layer(changed)[:, :7])
    assert not torch.equal(layer(x)[:, 7], layer(changed)[:, 7])


@pytest.mark.parametrize("pieces", [[12], [5, 1, 6], [1] * 12, [4, 4, 4]])
def test_pieces_through_a_cache_equal_the_whole(layer, pieces):
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    cache = KVCache(12)
    out = []
    for piece in x.split(pieces, dim=1):
        out.append(layer(piece, cache=cache))
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(out, dim=1), layer(x))


def test_dense_attention_captures_nothing(layer):
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    out, captured = layer(x, return_intermediate=True)
    assert captured is None
    assert torch.equal(out, layer(x))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    layer = CausalSelfAttention(GPT2Config(n_head=4, n_embed=32, dropout=0.5))
    x = torch.randn(1, 9, 32)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_bias_false_leaves_no_bias():
    names = [name for name, _ in CausalSelfAttention(GPT2Config(bias=False)).named_parameters()]
    assert names == ["c_attn.weight", "c_proj.weight"]
