"""Decoders of a few thousand weights in local folders, each with a tokenizer of a few words."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from gossamer.tokenizer import BPETokenizer

TEXT = "low lower lowest, so it goes: the lower the slower. " * 40
CONTEXT = 48
VOCABULARY = 261
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    **ENDS,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
FAMILIES: dict[str, PretrainedConfig] = {
    "gpt2": transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, **ENDS),
    "llama": transformers.LlamaConfig(**SHAPE),
    "qwen3": transformers.Qwen3Config(**SHAPE),
    "mistral": transformers.MistralConfig(**SHAPE, sliding_window=20),
    "gemma2": transformers.Gemma2Config(**SHAPE, sliding_window=20, attn_logit_softcapping=2.0),
    "gpt_oss": transformers.GptOssConfig(
        **SHAPE, sliding_window=20, num_local_experts=2, num_experts_per_tok=1, rope_parameters=YARN
    ),
    "phi3": transformers.Phi3Config(**SHAPE),
}


def decoder(config: PretrainedConfig) -> PreTrainedModel:
    """A model whose random weights are large enough for attention to differ between keys, and between heads."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        copy.deepcopy(config)
    )  # the model keeps it, and may change it
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def save(model: PreTrainedModel, folder: Path, *, opening: bool = False) -> Path:
    """The folder with the model and a tokenizer, which puts a token before each text if `opening`."""
    model.save_pretrained(folder)
    BPETokenizer.train(["low lower lowest"] * 9, vocab_size=VOCABULARY).save(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    if opening:
        from tokenizers.processors import TemplateProcessing

        end = "<|endoftext|>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))]
        )
    tokenizer.save_pretrained(folder)
    return folder


def folder_of(family: str, folder: Path) -> Path:
    """The folder with a random decoder of the family."""
    return save(decoder(FAMILIES[family]), folder)


def near_and_first() -> PreTrainedModel:
    """A GPT-2 one of whose heads looks at the last few tokens alone, and the other at the first token alone.

    Positions are waves of which a query finds its own place, or place 0, by their sum: a peak a few tokens wide.
    What attention and MLP add to the residual stream is nothing, so that both layers see the bare positions;
    in the second layer the two heads are exchanged.
    """
    waves, length = 16, 64
    width = 2 * waves
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=length, n_embd=2 * width, n_layer=2, n_head=2, **ENDS
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    angles = math.pi * torch.arange(length)[:, None] * torch.arange(1, waves + 1) / length
    places = torch.cat([angles.cos(), angles.sin()], dim=1)  # [N, width], all of one norm
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wpe.weight.copy_(torch.cat([places, -places], dim=1))  # a mean of 0, as LayerNorm makes it
        for layer, block in enumerate(model.transformer.h):
            block.ln_1.weight.fill_(1)
            near, first = (0, 1) if layer == 0 else (1, 0)
            _look(block.attn.c_attn, near, width, None)
            _look(block.attn.c_attn, first, width, places[0] * math.sqrt(2))
    return model


def _look(c_attn: torch.nn.Module, head: int, width: int, at: Tensor | None) -> None:
    """Keys are places; the query is its own place, or the one at `at`."""
    sharpness = 3.0
    query = slice(head * width, (head + 1) * width)
    key = slice(query.start + 2 * width, query.stop + 2 * width)
    c_attn.weight[:width, key] = sharpness * torch.eye(width)
    if at is None:
        c_attn.weight[:width, query] = sharpness * torch.eye(width)
    else:
        c_attn.bias[query] = sharpness * at
