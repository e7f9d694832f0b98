"""Tiny models of the families that `sparsify` is tested on, and the dense masks that say what they should compute."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from gossamer import Causal, Dilated, Pattern, PerHead, Sinks, Strided, Window
from gossamer.reference import visible

VOCABULARY, LENGTH, WINDOW = 97, 60, 24
LAYERS = 3
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

NAMES = {"vocab_size": VOCABULARY, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": None}
SIZES: dict[str, Any] = NAMES | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
WIDE = SIZES | {"head_dim": 8}
GEMMA = WIDE | {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": ALTERNATING}
EXPERTS = {"sliding_window": WINDOW, "layer_types": ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2}
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
GPT2 = NAMES | {
    "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 512, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", WIDE),
    "qwen3": ("Qwen3", WIDE),
    "mistral": ("Mistral", WIDE | {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", GEMMA),
    "gpt_oss": ("GptOss", WIDE | EXPERTS | PLAIN_ROPE),
    "phi3": ("Phi3", SIZES),
}
"""For each family the beginning of its names in transformers, and the size of a tiny model."""

PATTERNS: dict[str, Pattern] = {
    "window and sinks": Window(9) | Sinks(2),
    "a pattern a head": PerHead([(Window(7), 2), (Window(7) | Strided(8), 2)]),
    "dilated": Dilated(6, step=3),
}
MIXED = {0: Window(9) | Sinks(2), 2: Dilated(6, step=3)}
"""Of a model's layers; the one between stays dense."""

SPARSE = PATTERNS["window and sinks"] | Strided(11)
"""What is tested where one pattern is enough: it drops keys, archives some, and reads far back."""


@cache
def _original(family: str) -> PreTrainedModel:
    name, sizes = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 or "sinks" in name:  # large enough that attention matters
                parameter.normal_(std=0.1 if "embed" in name else 0.2)
    return model.eval()


def tiny(family: str) -> PreTrainedModel:
    """A dense model of the family in evaluation mode, with the same random weights at each call."""
    return deepcopy(_original(family))


def eager(family: str) -> PreTrainedModel:
    """The same with transformers' own eager attention, the only one that does all that each family asks for."""
    model = tiny(family)
    model.set_attn_implementation("eager")
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    """Random tokens of the vocabulary, none of them special."""
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def own_window(family: str, layer: int) -> int | None:
    """How far the dense layer itself sees, as its configuration says."""
    sizes = FAMILIES[family][1]
    slides = sizes.get("layer_types", ["sliding_attention"] * LAYERS)[layer] == "sliding_attention"
    return sizes.get("sliding_window") if slides else None


def masked(family: str, of_layer: Callable[[int], Pattern], length: int = LENGTH) -> PreTrainedModel:
    """The dense model, run by transformers' own eager attention under a 4-D mask for each layer."""
    model = eager(family)
    for module in list(model.modules()):
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention"):
            window = own_window(family, module.layer_idx)
            pattern = Causal() & of_layer(module.layer_idx)
            seen = visible(pattern if window is None else pattern & Window(window), length, length, torch.device("cpu"))
            _mask_always(module, torch.where(seen.reshape(1, -1, length, length), 0.0, torch.finfo(torch.float32).min))
    return model


def _mask_always(module: nn.Module, mask: Tensor) -> None:
    def replace(module: nn.Module, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**given, "attention_mask": mask}

    module.register_forward_pre_hook(replace, with_kwargs=True)


def left_padded(rows: list[Tensor]) -> dict[str, Tensor]:
    """A batch of sequences of different lengths with padding before the shorter ones, as a tokenizer makes it."""
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for row, sequence in enumerate(rows):
        ids[row, length - len(sequence) :], mask[row, length - len(sequence) :] = sequence, 1
    return {"input_ids": ids, "attention_mask": mask}


def with_positions(padded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with the positions that `generate` would count, beginning at each sequence's first token."""
    return padded | {"position_ids": (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def differ(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()
