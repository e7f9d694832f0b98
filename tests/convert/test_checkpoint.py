"""Which folders hold a dense model, and whether what is heard is what it computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from gossamer import GPT2, Causal, GPT2Config, Sinks, Window
from gossamer.convert import huggingface
from gossamer.convert.checkpoint import Layer, open_model
from gossamer.convert.mass import DenseAttention, attend_densely, kept_mass
from gossamer.integrations.huggingface.layers import KEY
from gossamer.models.config_file import SPARSE
from gossamer.tokenizer import ByteTokenizer

from .tiny import CONTEXT, FAMILIES, SHAPE, TEXT, decoder, folder_of, save

CANDIDATES = (Causal() & Window(4), Causal() & (Window(16) | Sinks(2)), Causal())
TOKENS = torch.arange(CONTEXT)[None] * 7 % 256


def weights_of(model: transformers.PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """[B, H, N, N] of each layer, as transformers' own eager attention computes them."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(TOKENS, output_attentions=True).attentions


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_heard_is_the_model_s_own_attention(family: str, tmp_path: Path) -> None:
    """Kept mass as by the weights that transformers hands out; what they lack of 1 is with a learned sink."""
    model = open_model(folder_of(family, tmp_path))
    heard: list[torch.Tensor] = []
    model.read(TOKENS, lambda seen: heard.append(kept_mass(seen, CANDIDATES, tile=16)))
    own = weights_of(decoder(FAMILIES[family]))
    masks = torch.stack([torch.from_numpy(candidate.dense_mask(CONTEXT)) for candidate in CANDIDATES])
    for layer, weights in zip(heard, own, strict=True):
        hidden = torch.einsum("bhqk,cqk->hc", weights, (~masks).float()) / CONTEXT
        torch.testing.assert_close(layer, 1 - hidden, atol=1e-4, rtol=0)
        assert hidden[:, 0].min() > 0.01  # the narrow window loses something, so that the comparison says something


@pytest.mark.parametrize("family", FAMILIES)
def test_the_survey_knows_heads_and_windows(family: str, tmp_path: Path) -> None:
    windows = {"mistral": (20, 20), "gemma2": (20, None), "gpt_oss": (20, None)}.get(family, (None, None))
    model = open_model(folder_of(family, tmp_path))
    key_heads = 4 if family == "gpt2" else 2
    assert model.survey(TOKENS) == tuple(Layer(4, key_heads, window) for window in windows)
    assert model.positions == 64


def test_attention_that_is_not_the_model_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: heard is a window of 3, the model sees everything."""
    model = open_model(folder_of("llama", tmp_path))

    def narrowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: object) -> object:
        return attend_densely(q, k, v, **{**settings, "window": 3})

    monkeypatch.setattr(huggingface, "attend_densely", narrowed)
    with pytest.raises(ValueError, match="answers otherwise than by itself"):
        model.survey(TOKENS)


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    save(decoder(FAMILIES["llama"]).bfloat16(), tmp_path)
    model = open_model(tmp_path)
    assert model._model.dtype == torch.bfloat16
    assert len(model.survey(TOKENS)) == 2


def test_a_text_begins_as_the_tokenizer_begins_it(tmp_path: Path) -> None:
    bare = open_model(save(decoder(FAMILIES["gpt2"]), tmp_path / "bare"))
    opened = open_model(save(decoder(FAMILIES["gpt2"]), tmp_path / "opened", opening=True))
    assert bare.opening == () and len(opened.opening) == 1
    assert bare.encode(TEXT) == opened.encode(TEXT)
    assert opened.opening[0] not in opened.encode(TEXT)


def own_gpt2(folder: Path, **settings: object) -> Path:
    """The folder with a GPT2 of Gossamer and a tokenizer of bytes."""
    shape = {"vocab_size": 257, "context_size": 64, "n_layer": 2, "n_head": 4, "n_embed": 32}
    GPT2(GPT2Config(**shape, **settings)).save(folder)
    ByteTokenizer().save(folder)
    return folder


def test_both_readers_hear_the_same(tmp_path: Path) -> None:
    own = own_gpt2(tmp_path)
    heard: list[list[DenseAttention]] = [[], []]
    open_model(own).read(TOKENS, heard[0].append)
    listened = huggingface.TransformersModel.__new__(huggingface.TransformersModel)
    listened._model = transformers.AutoModelForCausalLM.from_pretrained(own).eval()
    listened._decoder = listened._model.base_model
    listened.read(TOKENS, heard[1].append)
    for mine, theirs in zip(*heard, strict=True):
        torch.testing.assert_close(kept_mass(mine, CANDIDATES), kept_mass(theirs, CANDIDATES))


def test_own_gpt2_is_surveyed(tmp_path: Path) -> None:
    model = open_model(own_gpt2(tmp_path))
    assert model.survey(TOKENS) == (Layer(4, 4, None),) * 2
    assert (model.positions, model.opening) == (64, ())
    assert set(model.files) == {"model.safetensors", "tokenizer.json"}


def test_the_key_is_that_of_the_integration() -> None:
    assert SPARSE == KEY


def without_tokenizer(folder: Path) -> None:
    decoder(FAMILIES["gpt2"]).save_pretrained(folder)


def sparse_already(folder: Path) -> None:
    folder_of("gpt2", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, SPARSE: {"patterns": ["Causal()"] * 2}}))


def of_an_unknown_kind(folder: Path) -> None:
    folder_of("gpt2", folder)
    (folder / "config.json").write_text('{"model_type": "perceptron"}')


def without_weights(folder: Path) -> None:
    folder_of("gpt2", folder)
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def an_encoder(folder: Path) -> None:
    save(transformers.BertLMHeadModel(transformers.BertConfig(**SHAPE)), folder)


def chunked(folder: Path) -> None:
    save(decoder(transformers.LlamaConfig(**SHAPE)), folder)
    config = json.loads((folder / "config.json").read_text())
    layers = ["chunked_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps({**config, "layer_types": layers}))


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (lambda folder: None, "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds \\[\\] where a table"),
        (without_tokenizer, "no tokenizer that transformers can load"),
        (sparse_already, "is sparse already, by sparse_attention"),
        (of_an_unknown_kind, "perceptron"),
        (without_weights, "no decoder that transformers can load"),
        (pickled, "no decoder that transformers can load"),
        (an_encoder, "Bert"),
        (chunked, "chunked_attention"),
        (lambda folder: own_gpt2(folder, use_sparse_attention=True), "is sparse already: its use_sparse_attention"),
    ],
)
def test_what_is_no_dense_decoder_is_named(fill: object, said: str, tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        open_model(tmp_path)
