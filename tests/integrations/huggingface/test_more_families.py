"""Families that are built in a way of their own: where the decoder is, what a layer is given, how wide values are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from gossamer import Causal, sparsify
from gossamer.integrations.huggingface import is_sparse
from gossamer.integrations.huggingface.layers import Unswitchable
from tests.integrations.huggingface.families import LENGTH, SIZES, SPARSE, WINDOW, differ, left_padded, tokens

pytestmark = pytest.mark.usefixtures("no_gradients")

EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
}  # fmt: skip
BY_TURNS = {"local_attention": WINDOW, "global_attn_every_n_layers": 2, "pad_token_id": 0, "eos_token_id": 96}
TABLE = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "a decoder within the decoder": ("OPT", SIZES | TABLE | {"pad_token_id": 0}),
    "a head called decoder": ("ModernBertDecoder", SIZES | BY_TURNS),
    "a window of 0": ("Qwen2Moe", SIZES | EXPERTS | {"shared_expert_intermediate_size": 8}),
    "a view of what attention gives": ("JetMoe", SIZES | EXPERTS | {"kv_channels": 16, "num_key_value_heads": 2}),
    "values of another width": ("DeepseekV3", SIZES | LATENT),
    "a multiplied scale": ("Granite", SIZES | {"attention_multiplier": 0.5}),
    "layers without positions": ("SmolLM3", SIZES | {"no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 2}),
    "sliding layers before whole ones": ("Cohere2", SIZES | {"sliding_window": WINDOW, "sliding_window_pattern": 2}),
}


def built(family: str, sizes: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=0.15)
    return model.eval()


@pytest.mark.parametrize(("family", "sizes"), MORE.values(), ids=MORE)
def test_every_way_to_build_a_family_is_switched(family: str, sizes: dict[str, Any]) -> None:
    model, ids = built(family, sizes), tokens(2, LENGTH)
    dense = model(ids).logits
    if not model._supports_attention_backend:  # in old transformers
        with pytest.raises(Unswitchable, match="AttentionInterface"):
            sparsify(model, Causal())
        return
    assert differ(sparsify(model, Causal())(ids).logits, dense) < 1e-5
    assert is_sparse(sparsify(model, SPARSE))
    right = model(ids, use_cache=False).logits
    assert differ(right, dense) > 1e-3
    settings = {"max_new_tokens": 8, "do_sample": False}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert torch.equal(found, model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **settings))
    together = model.generate(**left_padded([ids[0, 9:], ids[1]]), **settings)
    assert torch.equal(together[0, LENGTH:], model.generate(ids[:1, 9:], **settings)[0, LENGTH - 9 :])
    assert torch.equal(together[1, LENGTH:], found[1, LENGTH:])


@pytest.mark.parametrize("name", ["a head called decoder", "sliding layers before whole ones"])
def test_the_models_that_slide_by_turns_do(name: str) -> None:
    """Else the test above would show nothing of their windows."""
    assert set(built(*MORE[name]).config.layer_types) == {"sliding_attention", "full_attention"}
