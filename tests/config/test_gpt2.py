import json
import math

import pytest

from gossamer.config import GPT2Config, IndexerConfig, RotaryConfig, SparseAttentionConfig, YarnConfig
from gossamer.patterns import Causal, Dilated, PerHead, Window


def test_the_defaults_are_those_of_the_design_document():
    config = GPT2Config()
    shape = config.vocab_size, config.context_size, config.n_layer, config.n_head, config.n_embed
    assert shape == (50304, 1024, 12, 12, 768)
    assert config.sparse_config is None and not config.use_sparse_attention


@pytest.mark.parametrize("name", ["vocab_size", "context_size", "n_layer", "n_head", "n_embed"])
@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, "12", True, None])
def test_sizes_that_are_no_positive_integers_are_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        GPT2Config(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan, "0.1", None, False])
def test_a_dropout_outside_its_range_is_refused(value):
    with pytest.raises(ValueError, match=f"dropout is {value!r}"):
        GPT2Config(dropout=value)


@pytest.mark.parametrize("value", [0, -1e-5, math.nan, math.inf])
def test_an_epsilon_outside_its_range_is_refused(value):
    with pytest.raises(ValueError, match=f"layer_norm_epsilon is {value!r}"):
        GPT2Config(layer_norm_epsilon=value)


@pytest.mark.parametrize("name", ["bias", "use_sparse_attention"])
def test_a_switch_is_true_or_false(name):
    with pytest.raises(ValueError, match=f"{name} is 'false'; give True or False"):
        GPT2Config(**{name: "false"})


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"n_embed is 100; give a multiple of n_head=12, as 768"):
        GPT2Config(n_embed=100)


def test_head_counts_that_do_not_sum_name_the_way_out():
    with pytest.raises(ValueError, match=r"local_heads=8 and global_heads=4.*n_head=6.*config\.for_heads\(6\)"):
        GPT2Config(n_head=6, n_embed=384, use_sparse_attention=True, sparse_config=SparseAttentionConfig())
    sparse = SparseAttentionConfig().for_heads(6)
    assert GPT2Config(n_head=6, n_embed=384, use_sparse_attention=True, sparse_config=sparse).sparse_config == sparse


def test_padding_lies_beyond_the_vocabulary():
    assert GPT2Config(unpadded_vocab_size=50257).known_tokens == 50257
    assert GPT2Config().known_tokens == 50304
    with pytest.raises(ValueError, match=r"unpadded_vocab_size is 50305; give at most vocab_size=50304"):
        GPT2Config(unpadded_vocab_size=50305)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(),
        GPT2Config(use_sparse_attention=True),
        GPT2Config(use_sparse_attention=True, sparse_config=SparseAttentionConfig(window_size=7), dropout=0.25),
        GPT2Config(unpadded_vocab_size=50257, bias=False),
        GPT2Config(n_layer=2, windows=(8, 16), dilations=(1, 2), dilated_heads=2, positions="rotary"),
        GPT2Config(indexer=IndexerConfig(index_n_heads=2, rotary=RotaryConfig(interleaved=True))),
        GPT2Config(indexer=IndexerConfig(rotary=RotaryConfig(1e6, yarn=YarnConfig(4.0, 1024)))),
    ],
)
def test_a_configuration_survives_json(config):
    assert GPT2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_keys_are_named_beside_the_known_ones():
    with pytest.raises(ValueError, match=r"GPT2Config: unknown 'n_embd'.*known are vocab_size, .*n_embed"):
        GPT2Config.from_dict({"n_embd": 768})
    with pytest.raises(ValueError, match=r"sparse_config is 7; give a SparseAttentionConfig"):
        GPT2Config.from_dict({"sparse_config": 7})
    with pytest.raises(ValueError, match=r"SparseAttentionConfig: unknown 'window'.*window_size"):
        GPT2Config.from_dict({"sparse_config": {"window": 3}})
    with pytest.raises(ValueError, match=r"IndexerConfig: unknown 'heads'.*index_n_heads"):
        GPT2Config.from_dict({"indexer": {"heads": 3}})


LAYERS = [
    ({"windows": (8, 16, 32)}, r"windows is \(8, 16, 32\); give one for each of n_layer=2 layers"),
    ({"windows": (8, 0)}, r"windows is 0; .* at least 1"),
    ({"windows": 8}, r"windows is 8; give 2 integers, or none"),
    ({"windows": (8, 8), "dilations": (1,)}, r"dilations is \(1,\); give one for each"),
    ({"windows": (8, 8), "dilations": (1, 0)}, r"dilations is 0; .* at least 1"),
    ({"dilations": (1, 2)}, r"dilations is \(1, 2\); give windows too"),
    ({"windows": (8, 8), "use_sparse_attention": True}, r"windows is \(8, 8\); leave them out, or set use_sparse"),
    ({"indexer": 3}, r"indexer is 3; give an IndexerConfig, or None"),
    ({"indexer": IndexerConfig(), "use_sparse_attention": True}, r"use_sparse_attention is True; leave it out where"),
    ({"indexer": IndexerConfig(), "windows": (8, 8)}, r"windows is \(8, 8\); leave it out where there is an indexer"),
    ({"dilated_heads": 13}, r"dilated_heads is 13; give at most n_head=12"),
    ({"positions": "sinusoidal"}, r"positions is 'sinusoidal'; give one of learned, rotary"),
    ({"positions": "rotary", "n_embed": 36}, r"n_embed is 36; rotary positions need an even width"),
]


@pytest.mark.parametrize(("change", "message"), LAYERS, ids=[str(change) for change, _ in LAYERS])
def test_layers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=f"GPT2Config: {message}"):
        GPT2Config(**{"n_layer": 2, **change})


def test_a_layer_without_dilation_has_one_pattern():
    config = GPT2Config(n_layer=2, windows=(8, 16), dilations=(1, 2), dilated_heads=12)
    assert config.layer_pattern(0) == Causal() & Window(8)
    assert config.layer_pattern(1) == PerHead([(Causal() & Dilated(16, 2), 12)])
