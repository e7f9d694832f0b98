"""Layers of transformers' DeepSeek-V3, V3.2 and GLM-5: their configuration, their weights, their numbers."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from gossamer.config import LatentConfig, RotaryConfig
from gossamer.nn import KVCache, LatentAttention
from tests.nn.indexed_layers import index_scores, mask_of

NAMES = {"deepseek_v3": "DeepseekV3", "deepseek_v32": "DeepseekV32", "glm_moe_dsa": "GlmMoeDsa"}
WIDTHS = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
}
INDEX = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 12}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
CASES = {
    "DeepSeek-V3": ("deepseek_v3", {}),
    "DeepSeek-V3, halves": ("deepseek_v3", {"rope_interleave": False}),
    "direct queries, biases": ("deepseek_v3", {"q_lora_rank": None, "attention_bias": True}),
    "DeepSeek-V3.2": ("deepseek_v32", INDEX),
    "DeepSeek-V3.2, YaRN": ("deepseek_v32", {**INDEX, "rope_parameters": YARN}),
    "GLM-5": ("glm_moe_dsa", INDEX),
    "GLM-5, index shared": ("glm_moe_dsa", {**INDEX, "num_hidden_layers": 2, "indexer_types": ["full", "shared"]}),
}
TOKENS = 50


@dataclass(frozen=True, eq=False)
class Theirs:
    """A layer of transformers, and what it is called with."""

    attention: nn.Module
    places: tuple[Tensor, Tensor]
    shape: LatentConfig

    def __call__(self, x: Tensor, *earlier: Tensor) -> tuple[Tensor, Tensor | None]:
        """(output, indices where it hands them over)"""
        bias = torch.full((TOKENS, TOKENS), torch.finfo(torch.float32).min).triu(1).expand(len(x), 1, -1, -1)
        more = {"prev_topk_indices": earlier[0]} if earlier else {}
        out, _, *indices = self.attention(x, self.places, bias, **more)
        return out, indices[0] if indices else None


def theirs(case: str, layer: int = 0) -> Theirs:
    family, settings = CASES[case]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name = NAMES[family]
    config = getattr(importlib.import_module("transformers"), f"{name}Config")(**{**WIDTHS, **settings})
    attention = getattr(module, f"{name}Attention")(config, layer).eval()
    torch.manual_seed(3)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    places = getattr(module, f"{name}RotaryEmbedding")(config)(torch.zeros(1), torch.arange(TOKENS)[None])
    return Theirs(attention, places, LatentConfig.of_model(config.to_dict()))


def ours(other: Theirs) -> LatentAttention:
    layer = LatentAttention(other.shape)
    layer.load_state_dict(other.attention.state_dict())
    return layer


def require_no_ties(layer: LatentAttention, x: Tensor) -> None:
    """Which of equal scores are taken is no rule of transformers': the data must leave nothing to that."""
    exact = LatentAttention(layer.config).double()
    exact.load_state_dict(layer.state_dict())
    scores = index_scores(exact, x.double(), exact.query_source(x.double()))
    count = layer.config.indexer.index_topk
    ordered = scores.sort(dim=-1, descending=True).values[:, count:, count - 1 : count + 1]
    assert (ordered[..., 0] - ordered[..., 1]).min() > 1e-6


@pytest.mark.parametrize("mode", ["mha", "mqa"])
@pytest.mark.parametrize("case", [case for case in CASES if "shared" not in case])
def test_the_same_weights_give_the_same_numbers(case: str, mode: str) -> None:
    other, x = theirs(case), torch.randn(2, TOKENS, 64)
    layer = ours(other)
    if layer.indexer is not None:
        require_no_ties(layer, x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, mode=mode), other(x)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["DeepSeek-V3.2", "DeepSeek-V3.2, YaRN", "GLM-5"])
def test_the_same_weights_choose_the_same_keys(case: str) -> None:
    other, x = theirs(case), torch.randn(2, TOKENS, 64)
    layer = ours(other)
    require_no_ties(layer, x)
    causal = torch.ones(2, TOKENS, TOKENS, dtype=torch.bool).tril()
    with torch.no_grad():
        _, seen = layer(x, True)
        chosen = other.attention.indexer(x, layer.query_source(x), other.places, causal, None).long()
    assert torch.equal(mask_of(seen.selection, TOKENS), torch.zeros_like(causal).scatter_(-1, chosen, True) & causal)


def test_a_layer_of_glm_takes_the_choice_of_the_one_before() -> None:
    first, second = (theirs("GLM-5, index shared", layer) for layer in (0, 1))
    x = torch.randn(2, TOKENS, 64)
    below = ours(first)
    above = LatentAttention(second.shape)
    missing, unexpected = above.load_state_dict(second.attention.state_dict(), strict=False)
    assert all(name.startswith("indexer.") for name in missing) and not unexpected
    require_no_ties(below, x)
    with torch.no_grad():
        middle, indices = first(x)
        right, _ = second(middle, indices)
        out, seen = below(x, True)
        torch.testing.assert_close(above(out, selection=seen.selection), right, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["mha", "mqa", None])
def test_decoding_gives_what_transformers_gives_with_its_cache(mode: str | None) -> None:
    from transformers import DynamicCache

    other, x = theirs("DeepSeek-V3"), torch.randn(2, TOKENS, 64)
    layer, cache, held = ours(other), KVCache(TOKENS), DynamicCache()
    with torch.no_grad():
        for start, end in ((0, 40), *((t, t + 1) for t in range(40, TOKENS))):
            places = tuple(part[:, start:end] for part in other.places)
            bias = torch.full((end, end), torch.finfo(torch.float32).min).triu(1)[start:].expand(2, 1, -1, -1)
            right, _ = other.attention(x[:, start:end], places, bias, held)
            torch.testing.assert_close(layer(x[:, start:end], mode=mode, cache=cache), right, rtol=0, atol=1e-4)
            cache.advance(end - start)


def test_the_file_s_rotation_is_read() -> None:
    assert theirs("DeepSeek-V3, halves").shape.rotary == RotaryConfig()
    shape = theirs("GLM-5").shape
    assert shape.rotary.interleaved and shape.indexer.rotary.interleaved
