"""Tiny models of the families that hand their choice of keys to attention, as far as transformers has them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

VOCABULARY = 64
EVERY = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None, "num_experts_per_tok": 2, "initializer_range": 0.2,
}  # fmt: skip
LATENT = EVERY | {  # keys of other width than values, as in latent attention; 5 of some 40 keys are chosen
    "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_shared_experts": 1, "n_routed_experts": 4, "n_group": 1,
    "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "head_dim": 8,
    "v_head_dim": 12, "index_topk": 5, "index_head_dim": 16, "index_n_heads": 16,
}  # fmt: skip
SHARED = {"indexer_types": ["full", "shared", "full"]}  # the second layer keeps to the choice of the first
BLOCKS = EVERY | {  # 2 blocks of 4 keys for each key head; the first layer chooses nothing
    "num_key_value_heads": 2, "head_dim": 16, "dense_intermediate_size": 32, "shared_intermediate_size": 16,
    "num_local_experts": 4, "index_n_heads": 2, "index_head_dim": 8, "index_block_size": 4, "index_topk_blocks": 2,
    "index_local_blocks": 1, "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A module of transformers, the names in it, and the size of a tiny model."""

    module: str
    config: str
    model: str
    sizes: dict[str, Any]
    dense: tuple[str, ...] = ("eager", "sdpa")
    pads_right: bool = False
    """Its choice itself is another one with padding before, whatever the attention."""

    @property
    def exists(self) -> bool:
        """Whether the installed transformers has it."""
        try:
            import_module(f"transformers.models.{self.module}")
        except ModuleNotFoundError:
            return False
        return True

    def build(self, **changes: Any) -> PreTrainedModel:
        """A new model with random weights, the same at each call, in evaluation mode."""
        torch.manual_seed(0)
        module = import_module(f"transformers.models.{self.module}")
        return getattr(module, self.model)(getattr(module, self.config)(**self.sizes | changes)).eval()


FIRST = Family("deepseek_v32", "DeepseekV32Config", "DeepseekV32ForCausalLM", LATENT)
FAMILIES = {
    family.module: family
    for family in (
        FIRST,
        Family("glm_moe_dsa", "GlmMoeDsaConfig", "GlmMoeDsaForCausalLM", LATENT | SHARED),
        Family("axk2", "AXK2Config", "AXK2ForCausalLM", LATENT),
        Family("hy_v4", "HYV4Config", "HYV4ForCausalLM", LATENT | SHARED, dense=("eager",)),
        Family("dots3_note", "Dots3NoteTextConfig", "Dots3NoteForCausalLM", LATENT),
        Family("mistral_large4", "MistralLarge4TextConfig", "MistralLarge4TextModel", LATENT | SHARED),
        Family("minimax_m3_vl", "MiniMaxM3VLTextConfig", "MiniMaxM3VLForCausalLM", BLOCKS, pads_right=True),
    )
    if family.exists and FIRST.exists  # older releases have GLM alone, whose own dense attention is wrong there
}

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_writer = pytest.mark.parametrize(
    "family",
    [family for name, family in FAMILIES.items() if name != "mistral_large4"],
    ids=lambda family: family.module,
)
