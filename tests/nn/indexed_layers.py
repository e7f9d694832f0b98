"""What right means for layers that choose their keys: formulas written out in float64, n×n and one token at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gossamer.config import IndexerConfig, LatentConfig, RotaryConfig, YarnConfig
from gossamer.nn import IndexedAttention, LatentAttention

INDEXER = IndexerConfig(index_n_heads=3, index_head_dim=16, index_topk=12, qk_rope_head_dim=8)
LATENT = LatentConfig(64, 4, 32, 24, 16, 8, 12, indexer=INDEXER)
YARN = YarnConfig(factor=8.0, original_max_position_embeddings=16, mscale_all_dim=1.0)
LATENT_SHAPES = {
    "indexed": LATENT,
    "dense": LatentConfig(64, 4, 32, 24, 16, 8, 12),
    "direct queries": LatentConfig(64, 2, None, 16, 8, 4, 8, indexer=INDEXER),
    "biases and yarn": LatentConfig(
        64, 3, 20, 24, 6, 8, 10, attention_bias=True,
        rotary=RotaryConfig(500.0, True, YARN), indexer=replace(INDEXER, rotary=RotaryConfig(500.0, False, YARN)),
    ),
    "halves, one head": LatentConfig(64, 1, 32, 48, 16, 8, 12, rotary=RotaryConfig(), indexer=INDEXER),
}  # fmt: skip


def turned(x: Tensor, rotary: RotaryConfig) -> Tensor:
    """[..., N, D] turned by 0, 1, 2, ...: complex numbers times e^(i·angle)."""
    half = x.shape[-1] // 2
    if not half:
        return x
    rates = [rotary.theta ** (-i / half) for i in range(half)]
    length = 1.0
    if rotary.yarn is not None:
        yarn, length = rotary.yarn, rotary.yarn.length_factor
        rates = [rate * (1 - slow + slow / yarn.factor) for rate, slow in zip(rates, ramp(half, rotary), strict=True)]
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * torch.tensor(rates, dtype=torch.float64).to(x.device)
    wide = x.double()
    pairs = wide.unflatten(-1, (half, 2)) if rotary.interleaved else wide.unflatten(-1, (2, half)).mT
    numbers = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.full_like(angles, length), angles)
    pairs = torch.view_as_real(numbers)
    return (pairs if rotary.interleaved else pairs.mT).flatten(-2).to(x.dtype)


def ramp(half: int, rotary: RotaryConfig) -> list[float]:
    """How slow YaRN takes each pair to be, 0 … 1."""
    length = rotary.yarn.original_max_position_embeddings
    places = [half * math.log(length / (n * 2 * math.pi)) / math.log(rotary.theta) for n in (32.0, 1.0)]
    first, last = max(math.floor(places[0]), 0), min(math.ceil(places[1]), 2 * half - 1)
    return [min(max((i - first) / (last - first), 0.0), 1.0) for i in range(half)]


def index_scores(layer: torch.nn.Module, x: Tensor, source: Tensor) -> Tensor:
    """[B, N, N] by the formula of the paper, minus infinity behind a query."""
    indexer, shape, n = layer.indexer, layer.indexer.config, x.shape[1]
    q = (source @ indexer.wq_b.weight.T).unflatten(-1, (shape.index_n_heads, -1)).transpose(1, 2)
    k = torch.nn.functional.layer_norm(
        x @ indexer.wk.weight.T, (shape.index_head_dim,), indexer.k_norm.weight, indexer.k_norm.bias, 1e-6
    )
    split = (shape.qk_rope_head_dim, shape.index_head_dim - shape.qk_rope_head_dim)
    q, k = (
        torch.cat([turned(first, shape.rotary), rest], -1) for first, rest in (part.split(split, -1) for part in (q, k))
    )
    weights = x @ indexer.weights_proj.weight.T * (shape.index_n_heads * shape.index_head_dim) ** -0.5
    products = q @ k[:, None].mT  # [B, J, N, N]
    products = products.relu() if shape.relu else products
    scores = (products * weights.mT[..., None]).sum(1)
    return scores.masked_fill(~torch.ones(n, n, dtype=torch.bool, device=x.device).tril(), -torch.inf)


def best(scores: Tensor, count: int) -> Tensor:
    """[B, N, N] True at the `count` best of each row, of equal ones the first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True) & (scores > -torch.inf)


def dense_latent(layer: LatentAttention, x: Tensor, seen: Tensor | None = None) -> Tensor:
    """MLA with all keys and values written out; `seen` [B, N, N], by default what the indexer's formula chooses."""
    shape, n = layer.config, x.shape[1]
    heads, still, rope = shape.num_attention_heads, shape.qk_nope_head_dim, shape.qk_rope_head_dim

    def normal(x: Tensor, norm: torch.nn.Module) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + shape.norm_eps).sqrt() * norm.weight

    def applied(linear: torch.nn.Linear, x: Tensor) -> Tensor:
        return x @ linear.weight.T + (0.0 if linear.bias is None else linear.bias)

    source = x if shape.q_lora_rank is None else normal(applied(layer.q_a_proj, x), layer.q_a_layernorm)
    project = layer.q_proj if shape.q_lora_rank is None else layer.q_b_proj
    q = applied(project, source).unflatten(-1, (heads, -1)).transpose(1, 2)
    low, key_rope = applied(layer.kv_a_proj_with_mqa, x).split([shape.kv_lora_rank, rope], -1)
    made = applied(layer.kv_b_proj, normal(low, layer.kv_a_layernorm)).unflatten(-1, (heads, -1)).transpose(1, 2)
    q = torch.cat([q[..., :still], turned(q[..., still:], shape.rotary)], -1)
    key_rope = turned(key_rope, shape.rotary)[:, None].expand(-1, heads, -1, -1)
    k, v = torch.cat([made[..., :still], key_rope], -1), made[..., still:]
    scale = (still + rope) ** -0.5
    if shape.rotary.yarn is not None:
        scale *= (1 + 0.1 * shape.rotary.yarn.mscale_all_dim * math.log(shape.rotary.yarn.factor)) ** 2
    if seen is None:
        seen = torch.ones(n, n, dtype=torch.bool, device=x.device).tril().expand(len(x), -1, -1)
        if layer.indexer is not None:
            seen = best(index_scores(layer, x, source), shape.indexer.index_topk)
    scores = (q @ k.mT * scale).masked_fill(~seen[:, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)  # a row that sees nothing is zeros
    return applied(layer.o_proj, (weights @ v).transpose(1, 2).flatten(2))


def mask_of(selection: object, keys: int) -> Tensor:
    """[B, Q, K] True at what one choice for all heads has chosen."""
    indices = selection.indices[:, 0].long()
    seen = torch.zeros(*indices.shape[:2], keys + 1, dtype=torch.bool, device=indices.device)
    return seen.scatter_(-1, indices.masked_fill(indices < 0, keys), True)[..., :keys]


def dense_indexed(layer: IndexedAttention, x: Tensor, seen: Tensor | None = None) -> Tensor:
    """Heads of queries over fewer heads of keys, n×n; `seen` [B, N, N] is by default what the formula chooses."""
    heads, key_heads = layer.n_head, layer.n_kv_head
    made = (x @ layer.c_attn.weight.T + layer.c_attn.bias).unflatten(-1, (heads + 2 * key_heads, -1)).transpose(1, 2)
    q, k, v = made.split([heads, key_heads, key_heads], 1)
    if layer.rotary is not None:
        q, k = turned(q, layer.rotary), turned(k, layer.rotary)
    k, v = (part.repeat_interleave(heads // key_heads, 1) for part in (k, v))
    if seen is None:
        seen = best(index_scores(layer, x, x), layer.indexer.config.index_topk)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen[:, None], -torch.inf)
    mixed = scores.softmax(-1).nan_to_num(0.0) @ v
    return mixed.transpose(1, 2).flatten(2) @ layer.c_proj.weight.T + layer.c_proj.bias
