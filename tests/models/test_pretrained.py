"""What transformers computes is saved under its name, and what it does not compute under one that it does not know."""

import json

import pytest
import torch
import transformers

from gossamer.config import BigBirdConfig, LongformerConfig, ReformerConfig
from gossamer.models import BigBird, Longformer, Reformer

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64}
ENCODERS = {
    "longformer": lambda **own: Longformer(LongformerConfig(**SMALL, attention_window=4, **own), "pooler"),
    "big_bird": lambda **own: BigBird(BigBirdConfig(**SMALL, block_size=4, **own), "pooler"),
    "reformer": lambda **own: Reformer(
        ReformerConfig(
            **{name: size for name, size in SMALL.items() if name != "num_hidden_layers"},
            attn_layers=("lsh",), axial_pos_embds=False, lsh_attn_chunk_length=4, **own,
        )
    ),
}  # fmt: skip
THEIRS = [("longformer", {}), ("big_bird", {"random_among": 8}), ("reformer", {"num_hashes": 2})]
OURS = [
    ("longformer", {"causal": True}),
    ("longformer", {"attention_dilation": 2}),
    ("longformer", {"attention_dilation": ((1, 1, 1, 2),)}),
    ("big_bird", {"extra_tokens": 2}),
    ("reformer", {"lsh_rules": "paper"}),
]


def saved(folder, kind, own):
    model = ENCODERS[kind](**own).eval()
    model.save_pretrained(folder)
    return model, json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kind", "own"), THEIRS)
def test_what_theirs_computes_bears_its_name(tmp_path, kind, own):
    _, stated = saved(tmp_path, kind, own)
    assert stated["model_type"] == kind
    assert transformers.AutoConfig.from_pretrained(tmp_path).architectures == stated["architectures"]


@pytest.mark.parametrize(("kind", "own"), OURS)
def test_what_it_does_not_compute_is_read_here_alone(tmp_path, kind, own):
    model, stated = saved(tmp_path, kind, own)
    assert stated["model_type"] == f"gossamer_{kind}"
    with pytest.raises(ValueError, match=f"gossamer_{kind}"):
        transformers.AutoModel.from_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, head=model.head_name)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
