"""config.json: a model's shape as transformers writes it, and as it reads it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import GPT2Config

FILE = "config.json"
OWN = "gossamer"
"""Where the file says the whole configuration of a GPT-2 of Gossamer."""
SPARSE = "sparse_attention"
"""Where it says what each layer of a model of transformers is to see."""

OFFICIAL_VOCABULARY = 50257  # its last token is <|endoftext|>

# What GPT2 computes, as transformers' configuration calls it; the first value is the default.
SUPPORTED: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def read(path: Path) -> GPT2Config:
    """The configuration in a config.json, as written here or by transformers.

    Raises:
        ValueError: The file is damaged, or describes what GPT2 does not compute; the message names both.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stated, dict):
            raise ValueError(f"it holds {stated!r} where a table of settings is expected")
        return GPT2Config.from_dict(stated[OWN]) if OWN in stated else _translated(stated)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; correct the file, or remove it if it belongs to other weights") from error


def write(path: Path, config: GPT2Config) -> None:
    """Writes what transformers needs to know and, as `OWN`, the whole configuration."""
    path.write_text(json.dumps(_settings(config), indent=2) + "\n", encoding="utf-8")


def _translated(stated: Mapping[str, Any]) -> GPT2Config:
    for key, supported in SUPPORTED.items():
        if stated.get(key, supported[0]) not in supported:
            raise ValueError(f"{key} is {stated[key]!r}; GPT2 computes {supported[0]!r} only")
    return GPT2Config(
        vocab_size=stated.get("vocab_size", OFFICIAL_VOCABULARY),
        context_size=stated.get("n_positions", 1024),
        n_layer=stated.get("n_layer", 12),
        n_head=stated.get("n_head", 12),
        n_embed=stated.get("n_embd", 768),
        dropout=stated.get("resid_pdrop", 0.1),
        layer_norm_epsilon=stated.get("layer_norm_epsilon", 1e-5),
    )


def _settings(config: GPT2Config) -> dict[str, Any]:
    end_of_text = OFFICIAL_VOCABULARY - 1 if config.known_tokens == OFFICIAL_VOCABULARY else None
    architecture, kind = _kind(config)
    return {
        "architectures": [architecture],
        "model_type": kind,
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embed,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        OWN: config.to_dict(),
    }


def _kind(config: GPT2Config) -> tuple[str, str]:
    """Architecture and type: a model with what transformers' GPT-2 lacks must not be taken for one."""
    if config.indexer is not None:
        return "GossamerIndexedGPT2", "gossamer_indexed_gpt2"
    if config.positions == "rotary":
        return "GossamerRotaryGPT2", "gossamer_rotary_gpt2"
    return "GPT2LMHeadModel", "gpt2"
