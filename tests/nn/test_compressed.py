"""`CompressedAttention`: transformers' layers with their weights, the formula in dense, no leak, and pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer.config import CSA, HCA, WINDOW_ONLY, CompressedConfig, IndexerConfig
from gossamer.config.compressed import FAR
from gossamer.indexed import attention_mass, index_scores, top_keys
from gossamer.nn.compressed import CompressedAttention, CompressedCache
from tests.causal_modules import (
    check_gradients_reach,
    check_indexer_learns,
    check_no_leak,
    check_picked,
    check_pieces,
    check_slope,
)

SMALL = {
    **{"hidden_size": 24, "num_attention_heads": 4, "head_dim": 16, "q_lora_rank": 12, "qk_rope_head_dim": 8},
    **{"o_groups": 2, "o_lora_rank": 6, "sliding_window": 8},
}
INDEXER = IndexerConfig(index_n_heads=16, index_head_dim=12, index_topk=3, qk_rope_head_dim=8, rotary=FAR)
CONFIGS = {
    "compressed_sparse_attention": replace(CSA, **SMALL, indexer=INDEXER),
    "heavily_compressed_attention": replace(HCA, **SMALL, compress_rate=6),
    "sliding_attention": replace(WINDOW_ONLY, **SMALL),
}
every_kind = pytest.mark.parametrize("kind", CONFIGS)


def layer(kind: str, dtype: torch.dtype = torch.float64, **changes: object) -> CompressedAttention:
    torch.manual_seed(0)
    made = CompressedAttention(replace(CONFIGS[kind], **changes)).to(dtype)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "sinks" in name or "position_bias" in name:
                parameter.normal_()
            else:
                parameter.mul_(3.0)  # scores that differ
    return made


def of_transformers(kind: str, ours: CompressedAttention) -> torch.nn.Module:
    """transformers' layer with our weights, in float32: it computes norms and angles in no other dtype."""
    pytest.importorskip("transformers.models.deepseek_v4")
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as v4

    config = v4.DeepseekV4Config(
        **{name: value for name, value in SMALL.items() if name != "qk_rope_head_dim"}, num_hidden_layers=1,
        layer_types=[kind], partial_rotary_factor=0.5, attn_implementation="eager",
        index_n_heads=16, index_head_dim=12, index_topk=3,
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 6},
    )  # fmt: skip
    theirs = v4.DeepseekV4Attention(config, 0).float()
    theirs.load_state_dict(ours.float().state_dict())
    theirs.turn = v4.DeepseekV4RotaryEmbedding(config)
    return theirs


def run_theirs(theirs: torch.nn.Module, x: Tensor) -> Tensor:
    length = x.shape[1]
    at = torch.arange(length)[None].expand(x.shape[0], -1)
    distance = at[0, :, None] - at[0]
    hidden = torch.zeros(length, length).masked_fill((distance < 0) | (distance >= 8), -torch.inf)
    turns = {name: theirs.turn(x, at, layer_type=name) for name in ("main", "compress")}
    return theirs(x, turns, at, hidden.expand(x.shape[0], 1, -1, -1))[0]


@every_kind
@pytest.mark.parametrize("length", [1, 3, 7, 50])
def test_it_is_transformers_layer(kind: str, length: int) -> None:
    ours = layer(kind, torch.float32)
    theirs = of_transformers(kind, ours)
    x = torch.randn(2, length, 24)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, right = ours(a), run_theirs(theirs, b)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(found)
    found.backward(grad)
    right.backward(grad)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """The last 8 features as four complex numbers, each turned by its own rate times the position."""
    rates = theta ** (-torch.arange(4, dtype=torch.float64) / 4)
    numbers = torch.view_as_complex(x[..., -8:].unflatten(-1, (4, 2)).contiguous())
    spun = torch.view_as_real(numbers * torch.polar(torch.ones_like(rates), position * rates)).flatten(-2)
    return torch.cat([x[..., :-8], spun], -1)


def normalised(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def entries_in_loops(made: torch.nn.Module, x: Tensor, rate: int, overlap: bool, theta: float) -> list[Tensor]:
    """Entries of one sequence [N, E], a feature's weights being a softmax over the tokens that say something to it."""
    entries = []
    for first in range(0, x.shape[0] // rate * rate, rate):
        said, gates = [], []
        for t in range(first - rate if overlap and first else first, first + rate):
            value = x[t] @ made.kv_proj.weight.T
            gate = x[t] @ made.gate_proj.weight.T + made.position_bias[t % rate]
            half = value.shape[0] // 2
            part = slice(None) if not overlap else slice(half, None) if t >= first else slice(half)
            said.append(value[part])
            gates.append(gate[part])
        mean = (torch.stack(gates).softmax(0) * torch.stack(said)).sum(0)
        entries.append(turned(normalised(mean, made.kv_norm.weight), first, theta))
    return entries


def in_loops(layer: CompressedAttention, x: Tensor) -> Tensor:
    """The formula, a token and a head at a time, for one sequence [N, E]."""
    config = layer.config
    theta, rate = config.rotary.theta, config.compress_rate
    low = normalised(x @ layer.q_a_proj.weight.T, layer.q_a_norm.weight)
    near = [turned(row, t, theta) for t, row in enumerate(normalised(x @ layer.kv_proj.weight.T, layer.kv_norm.weight))]
    entries = entries_in_loops(layer.compressor, x, rate, config.overlap, theta) if rate else []
    indexer = layer.indexer
    of_indexer = entries_in_loops(indexer, x, rate, config.overlap, theta) if indexer else []
    rows = []
    for t in range(x.shape[0]):
        whole = list(range((t + 1) // rate)) if rate else []
        if indexer and len(whole) > config.indexer.index_topk:
            queries = turned(
                (low[t] @ indexer.q_b_proj.weight.T).unflatten(0, (config.indexer.index_n_heads, -1)), t, theta
            )
            weights = x[t] @ indexer.scorer.weights_proj.weight.T
            scores = [float((weights * (queries @ of_indexer[w]).relu()).sum()) for w in whole]
            whole = sorted(whole, key=lambda w: (-scores[w], w))[: config.indexer.index_topk]
        keys = torch.stack([*near[max(0, t - config.sliding_window + 1) : t + 1], *(entries[w] for w in whole)])
        queries = normalised((low[t] @ layer.q_b_proj.weight.T).unflatten(0, (config.num_attention_heads, -1)))
        scores = turned(queries, t, theta) @ keys.T * config.head_dim**-0.5
        shares = torch.cat([scores, layer.sinks[:, None]], 1).softmax(1)[:, :-1]
        heads = turned(shares @ keys, -t, theta).flatten().unflatten(0, (config.o_groups, -1))
        rows.append(
            torch.cat(
                [of @ down.T for of, down in zip(heads, layer.o_a_proj.weight.chunk(config.o_groups), strict=True)]
            )
            @ layer.o_b_proj.weight.T
        )
    return torch.stack(rows)


@every_kind
@pytest.mark.parametrize("length", [1, 5, 31])
def test_it_is_the_formula(kind: str, length: int) -> None:
    made = layer(kind)
    x = torch.randn(2, length, 24, dtype=torch.float64)
    with torch.no_grad():
        right = torch.stack([in_loops(made, row) for row in x])
    torch.testing.assert_close(made(x), right, rtol=1e-9, atol=1e-9)


@every_kind
def test_nothing_of_the_future_is_seen(kind: str) -> None:
    check_no_leak(layer(kind), torch.randn(2, 40, 24, dtype=torch.float64), range(40))


def test_a_leak_would_be_found() -> None:
    """An entry that is seen before its last token has come, as in an early port of others."""
    made = layer("heavily_compressed_attention")
    over_all = made._over_all
    made._over_all = lambda q, near, entries, at: over_all(q, near, entries, at + 1)
    with pytest.raises(AssertionError, match="changed an output before"):
        check_no_leak(made, torch.randn(1, 40, 24, dtype=torch.float64), range(40))


def test_as_many_entries_as_there_are_is_all_of_them() -> None:
    kind = "compressed_sparse_attention"
    chosen = layer(kind, indexer=replace(INDEXER, index_topk=99))
    every = layer(kind, indexer=None)
    every.load_state_dict({k: v for k, v in chosen.state_dict().items() if "indexer" not in k})
    x = torch.randn(2, 50, 24, dtype=torch.float64)
    torch.testing.assert_close(chosen(x), every(x), rtol=1e-11, atol=1e-11)


def dense(made: CompressedAttention, x: Tensor) -> Tensor:
    """Causal attention of all tokens to all up to themselves, and to a sink: every pair is there."""
    length, at = x.shape[1], torch.arange(x.shape[1])
    q = normalised(made.q_b_proj(made.q_a_norm(made.q_a_proj(x))).unflatten(-1, (4, -1)).transpose(1, 2))
    near = made._turned(made.kv_norm(made.kv_proj(x))[:, None], at)
    scores = made._turned(q, at) @ near.mT * made.config.head_dim**-0.5
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    shares = torch.cat([scores, made.sinks.view(-1, 1, 1).expand(len(x), -1, length, 1)], -1).softmax(-1)
    heads = made._turned(shares[..., :-1] @ near, -at).transpose(1, 2).flatten(2)
    return made.o_b_proj(made.o_a_proj(heads.unflatten(-1, (made.config.o_groups, -1))).flatten(2))


@every_kind
def test_a_window_of_everything_is_dense_attention(kind: str) -> None:
    """Of a text that is too short for an entry: there is nothing but the window then."""
    changes = {"sliding_window": 30} | ({} if kind == "sliding_attention" else {"compress_rate": 64})
    made, x = layer(kind, **changes), torch.randn(2, 30, 24, dtype=torch.float64)
    torch.testing.assert_close(made(x), dense(made, x), rtol=1e-11, atol=1e-11)


@every_kind
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [17, 1, 1, 5, 16], [3, 37], [39, 1]], ids=str)
def test_pieces_through_a_cache_equal_the_whole(kind: str, pieces: list[int]) -> None:
    check_pieces(layer(kind), CompressedCache, torch.randn(2, 40, 24, dtype=torch.float64), pieces)


@every_kind
def test_a_cache_goes_on_with_picked_sequences(kind: str) -> None:
    check_picked(layer(kind), CompressedCache, torch.randn(2, 40, 24, dtype=torch.float64), 22)


@every_kind
def test_what_is_held_of_tokens_does_not_grow(kind: str) -> None:
    cache, made = CompressedCache(), layer(kind)
    with torch.no_grad():
        for _ in range(60):
            made(torch.randn(1, 1, 24, dtype=torch.float64), cache=cache)
            assert all(rows.shape[-2] <= 7 for rows in cache.window.rows + cache.tail.rows)
    assert cache.entries.seen == CONFIGS[kind].entries(60)


@every_kind
def test_gradients_reach_all_but_the_indexer(kind: str) -> None:
    made = layer(kind)
    check_gradients_reach(made, made(torch.randn(2, 40, 24, dtype=torch.float64)), but=["compressor.indexer."])


@every_kind
def test_gradients_are_slopes(kind: str) -> None:
    check_slope(layer(kind), torch.randn(1, 20, 24, dtype=torch.float64))


REFUSED = (
    ({"qk_rope_head_dim": 7}, "qk_rope_head_dim is 7; give an even number of at most head_dim=16"),
    ({"qk_rope_head_dim": 18}, "qk_rope_head_dim is 18"),
    ({"o_groups": 3}, "o_groups is 3; give a divisor of num_attention_heads=4"),
    ({"sliding_window": 0}, "sliding_window is 0; give an integer of at least 1"),
    ({"compress_rate": 0}, "indexer is .*give None: without a compress_rate there are no entries"),
    ({"compress_rate": 0, "indexer": None}, "overlap is True; give False"),
    ({"indexer": 3}, "indexer is 3; give an IndexerConfig, or None"),
    ({"overlap": 1}, "overlap is 1; give True or False"),
    ({"rotary": None}, "rotary is None; give a RotaryConfig"),
    ({"norm_eps": 0}, "norm_eps is 0; give a small positive number"),
)


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"CompressedConfig: {message}"):
        replace(CONFIGS["compressed_sparse_attention"], **changes)


def test_the_defaults_are_the_paper_s() -> None:
    config = CompressedConfig()
    assert (config.compress_rate, config.overlap, config.indexer.index_topk, config.sliding_window) == (
        4,
        True,
        512,
        128,
    )
    assert (config.head_dim, config.qk_rope_head_dim, config.rotary.theta) == (512, 64, 160_000.0)
    assert (HCA.compress_rate, HCA.overlap, HCA.indexer) == (128, False, None)
    assert WINDOW_ONLY.rotary.theta == 10_000.0


def test_the_indexer_learns_from_shares_of_the_whole_softmax_alone() -> None:
    """Shares of entries are those among window, entries and sink; their loss reaches the indexer and nobody else."""
    made = layer("compressed_sparse_attention")
    x = torch.randn(2, 40, 24, dtype=torch.float64, requires_grad=True)
    out, seen = made(x, return_intermediate=True)
    assert torch.equal(out, made(x))
    near = made._turned(made.kv_norm(made.kv_proj(x))[:, None], torch.arange(40))
    at, entry = torch.arange(40), torch.arange(10)
    far = (at[:, None] < at) | (at[:, None] - at >= 8)
    chosen = (seen.selection.indices[..., None] == entry).any(3)  # [B, 1, N, W]
    hidden = torch.cat([far.expand(2, 1, -1, -1), ~chosen], -1)
    scores = (seen.q @ torch.cat([near, seen.k], 2).mT * 0.25).masked_fill(hidden, -torch.inf)
    joint = torch.cat([scores, made.sinks.view(1, 4, 1, 1).expand(2, -1, 40, 1)], -1)
    torch.testing.assert_close(seen.lse, joint.logsumexp(-1), rtol=1e-10, atol=1e-10)
    right = joint.softmax(-1)[..., 40:50].sum(1)
    right = right / right.sum(-1, keepdim=True)
    mass = attention_mass(seen.q, seen.k, seen.lse, seen.selection, seen.scale)
    found = torch.zeros(2, 40, 11, dtype=torch.float64).scatter_add_(2, seen.selection.indices[:, 0].long() % 11, mass)
    torch.testing.assert_close(found[:, 3:, :10], right[:, 3:], rtol=1e-9, atol=1e-11)
    check_indexer_learns(made, [seen], relu=True)
    assert torch.autograd.grad(index_scores(*seen.index, seen.selection)[:, 12:].sum(), x, allow_unused=True) == (None,)


def test_the_indexer_rounds_and_rotates_as_its_config_says() -> None:
    """A Hadamard rotation changes no choice; eight bits choose what `top_keys` chooses of the same in eight bits."""
    kind, x = "compressed_sparse_attention", torch.randn(1, 200, 24, dtype=torch.float64)
    shape = replace(INDEXER, index_head_dim=16)
    plain, found = layer(kind, indexer=shape), {}
    for name, changes in {"turned": {"hadamard": True}, "rounded": {"hadamard": True, "precision": "fp8"}}.items():
        made = layer(kind, indexer=replace(shape, **changes))
        made.load_state_dict(plain.state_dict())
        found[name] = made(x, return_intermediate=True)[1]
    seen, chosen = plain(x, return_intermediate=True)[1], {k: v.selection.indices[:, 0] for k, v in found.items()}
    assert not torch.allclose(found["turned"].index.k, seen.index.k)
    assert torch.equal(chosen["turned"], seen.selection.indices[:, 0])
    whole = ((torch.arange(200) + 1) // 4)[None]
    right = top_keys(*found["turned"].index, 3, causal=False, visible=whole, precision="fp8")
    assert torch.equal(chosen["rounded"], right) and not torch.equal(right, chosen["turned"])


@pytest.mark.parametrize("kind", ["heavily_compressed_attention", "sliding_attention"])
def test_without_an_indexer_nothing_is_learned_from(kind: str) -> None:
    made, x = layer(kind), torch.randn(1, 20, 24, dtype=torch.float64)
    out, seen = made(x, return_intermediate=True)
    assert seen is None and torch.equal(out, made(x))
