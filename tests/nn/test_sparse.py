"""`SparseAttention`: the kernels' result is the document's formula, cached or not, and captures are of the real run."""

from __future__ import annotations

import pytest
import torch

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.nn.cache import KVCache
from gossamer.nn.dense import CausalSelfAttention
from gossamer.nn.masks import compute_sparsity
from gossamer.nn.sparse import SparseAttention

CONFIGS = {
    "default": SparseAttentionConfig(),
    "fixed window": SparseAttentionConfig(2, 1, window_size=7, adaptive_window=False),
    "adaptive": SparseAttentionConfig(1, 2, window_size=4, min_window_size=2),
    "few global tokens": SparseAttentionConfig(1, 1, max_global_tokens=2, global_token_ratio=0.3),
    "global rows": SparseAttentionConfig(1, 2, window_size=8, min_window_size=1, global_rows=True),
    "local alone": SparseAttentionConfig(3, 0, window_size=4, min_window_size=2),
    "global alone": SparseAttentionConfig(0, 2),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def layer(name: str, **options: object) -> SparseAttention:
    torch.manual_seed(0)
    config = CONFIGS[name]
    return SparseAttention(config, width=8 * config.n_head, **options).double().eval()


def inputs(attention: SparseAttention, length: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, length, attention.c_proj.in_features, dtype=torch.float64)


@every_config
@pytest.mark.parametrize("length", [1, 2, 11, 70, 150])
def test_it_is_the_document_s_dense_formula(name: str, length: int) -> None:
    attention = layer(name)
    x = inputs(attention, length).requires_grad_()
    found, right = attention(x), attention.forward_dense(x)
    torch.testing.assert_close(found, right)
    leaves = [x, *attention.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, right)), strict=True):
        torch.testing.assert_close(a, b)


@every_config
def test_captures_are_those_of_the_run(name: str) -> None:
    attention, config = layer(name), CONFIGS[name]
    x = inputs(attention, 61)
    out, seen = attention(x, return_intermediate=True)
    assert torch.equal(out, attention(x))
    masks = attention.generate_masks(61)
    assert masks.shape == (config.n_head, 61, 61)
    assert seen["window_size"] == config.window(61)
    assert seen["sparsity_ratio"] == pytest.approx(compute_sparsity(masks))
    for key, heads, first in (("local_mask", config.local_heads, 0), ("global_mask", config.global_heads, -1)):
        assert torch.equal(seen[key], masks[first]) if heads else seen[key] is None


def test_masks_are_made_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.patterns import Pattern

    attention = layer("default")
    monkeypatch.setattr(Pattern, "dense_mask", lambda *_: pytest.fail("an n×n mask was made"))
    attention(inputs(attention, 50))


@every_config
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [17, 1, 1, 21], [39, 1]], ids=str)
def test_pieces_through_a_cache_equal_the_whole(name: str, pieces: list[int]) -> None:
    """The window is resolved for the cache's capacity, as for a whole that is planned for that length."""
    attention = layer(name)
    x = inputs(attention, 40)
    cache = KVCache(64)
    out = []
    for piece in x.split(pieces, dim=1):
        out.append(attention(piece, cache=cache))
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(out, dim=1), attention(x, planned_length=64))


def test_captures_of_a_cached_step_are_its_rows() -> None:
    attention = layer("adaptive")
    x = inputs(attention, 20)
    cache = KVCache(30)
    attention(x[:, :17], cache=cache)
    cache.advance(17)
    _, seen = attention(x[:, 17:], return_intermediate=True, cache=cache)
    _, whole = attention(x, return_intermediate=True, planned_length=30)
    assert seen["window_size"] == whole["window_size"] == CONFIGS["adaptive"].window(30)
    for key in ("local_mask", "global_mask"):
        assert torch.equal(seen[key], whole[key][17:])


@every_config
def test_the_future_does_not_leak(name: str) -> None:
    attention = layer(name).float()
    x = inputs(attention, 50).float()
    out = attention(x)
    for t in (0, 9, 10, 31, 48):
        changed = x.clone()
        changed[:, t + 1 :] = 30 * torch.randn_like(changed[:, t + 1 :])
        after = attention(changed)
        assert torch.equal(out[:, : t + 1], after[:, : t + 1])
        assert not torch.equal(out[:, t + 1 :], after[:, t + 1 :])


@every_config
def test_the_future_does_not_leak_after_training(name: str) -> None:
    """Steps of an optimiser, dropout on: the pattern holds for whatever the weights become."""
    attention = layer(name).float().train()
    attention.dropout = 0.2
    optimizer = torch.optim.SGD(attention.parameters(), lr=0.3)
    x = inputs(attention, 30).float()
    for _ in range(3):
        optimizer.zero_grad()
        (attention(x) - x.roll(1, 1)).square().mean().backward()
        optimizer.step()
    attention.eval()
    changed = x.clone()
    changed[:, 20:] = 5.0
    assert torch.equal(attention(x)[:, :20], attention(changed)[:, :20])


def test_a_document_config_alone_has_64_a_head() -> None:
    attention = SparseAttention(SparseAttentionConfig(4, 2))
    assert attention.c_attn.weight.shape == (3 * 384, 384)
    assert SparseAttention(SparseAttentionConfig(4, 2), width=96).c_proj.weight.shape == (96, 96)


def test_a_gpt2_config_brings_its_own_heads_and_width() -> None:
    given = SparseAttentionConfig(1, 3)
    attention = SparseAttention(GPT2Config(n_head=4, n_embed=32, dropout=0.3, bias=False, sparse_config=given))
    assert attention.config == given and attention.dropout == 0.3
    assert attention.c_attn.weight.shape == (96, 32) and attention.c_attn.bias is None
    assert SparseAttention(GPT2Config(n_head=6, n_embed=48)).config == SparseAttentionConfig(4, 2)


def test_heads_that_do_not_fit_name_the_way_out() -> None:
    sparse = SparseAttentionConfig()
    wrong = GPT2Config(n_head=8, n_embed=64, sparse_config=sparse)
    with pytest.raises(ValueError, match=r"8 local and 4 global heads do not sum to n_head=8; .*for_heads\(8\)"):
        SparseAttention(wrong)
    SparseAttention(GPT2Config(n_head=8, n_embed=64, sparse_config=sparse.for_heads(8)))


@pytest.mark.parametrize("width", [0, -12, 13])
def test_a_width_that_does_not_fit_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"SparseAttention: width is {width}; give a multiple of the 3 heads"):
        SparseAttention(SparseAttentionConfig(2, 1), width=width)


def test_dropout_acts_in_training_only() -> None:
    attention = SparseAttention(GPT2Config(n_head=3, n_embed=24, dropout=0.5)).train()
    x = torch.randn(1, 20, 24)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_its_weights_fit_the_dense_module() -> None:
    """A window over everything makes the two modules the same function of the same parameters."""
    shape = GPT2Config(n_head=3, n_embed=24, sparse_config=SparseAttentionConfig(3, 0, 500, adaptive_window=False))
    sparse, dense = SparseAttention(shape).double(), CausalSelfAttention(shape).double()
    dense.load_state_dict(sparse.state_dict())
    x = torch.randn(2, 40, 24).double()
    torch.testing.assert_close(sparse(x), dense(x))


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_autocast_trains(compiled: bool) -> None:
    attention = layer("default").float().train()
    run = torch.compile(attention, fullgraph=True, backend="aot_eager") if compiled else attention
    x = inputs(attention, 33).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(x)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in attention.parameters())
