import json

import pytest
import transformers

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.models import config_file

THEIRS = {"vocab_size": 97, "n_positions": 64, "n_embd": 128, "n_layer": 3, "n_head": 2}


@pytest.fixture
def file(tmp_path):
    transformers.GPT2Config(**THEIRS, bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path)
    return tmp_path / "config.json"


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_transformers_wrote_is_read(file):
    change(file, resid_pdrop=0.3, layer_norm_epsilon=1e-6)
    assert config_file.read(file) == GPT2Config(
        vocab_size=97, context_size=64, n_embed=128, n_layer=3, n_head=2, dropout=0.3, layer_norm_epsilon=1e-6
    )


def test_what_is_absent_is_as_in_gpt2_small(file):
    file.write_text('{"model_type": "gpt2"}')
    assert config_file.read(file) == GPT2Config(vocab_size=50257, dropout=0.1)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=97, context_size=64, n_embed=128, n_layer=3, n_head=2),
        GPT2Config(unpadded_vocab_size=50257, bias=False, dropout=0.2),
        GPT2Config(use_sparse_attention=True, sparse_config=SparseAttentionConfig(window_size=7)),
    ],
)
def test_what_is_written_is_read_here_and_by_transformers(config, tmp_path):
    config_file.write(tmp_path / "config.json", config)
    assert config_file.read(tmp_path / "config.json") == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.GPT2Config)
    found = (theirs.vocab_size, theirs.n_positions, theirs.n_embd, theirs.n_layer, theirs.n_head)
    assert found == (config.vocab_size, config.context_size, config.n_embed, config.n_layer, config.n_head)
    assert theirs.eos_token_id == (50256 if config.known_tokens == 50257 else None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"n_head": 3}, "n_embed is 128; give a multiple of n_head=3"),
        ({"n_layer": "3"}, "n_layer is '3'"),
        ({"gossamer": {"colour": 1}}, "unknown 'colour'"),
        ({"gossamer": 7}, "7 is no table of settings"),
    ],
)
def test_the_configuration_of_another_model_is_refused(file, changes, message):
    change(file, **changes)
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        config_file.read(file)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b'"gossamer"', b"\xff\xfe"])
def test_a_damaged_file_is_named(file, content):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: .*correct the file"):
        config_file.read(file)
