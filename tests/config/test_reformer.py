"""`ReformerConfig`: what it refuses, and how long a sequence becomes."""

import pytest

from gossamer.config import ReformerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; give an integer of at least 1"),
        ({"num_hashes": 1.5}, "num_hashes is 1.5; give an integer"),
        ({"num_buckets": 7}, "num_buckets is 7; give 1 or an even number, a list of them, or None"),
        ({"num_buckets": [4, 3]}, r"num_buckets is \[4, 3\]; give 1 or an even number, a list of them, or None"),
        ({"num_buckets": []}, r"num_buckets is \[\]; give 1 or an even number"),
        ({"num_buckets": True}, "num_buckets is True; give 1 or an even number"),
        ({"axial_pos_shape": (0, 8)}, "an entry of axial_pos_shape is 0; give an integer of at least 1"),
        ({"axial_pos_shape": 8}, "axial_pos_shape is 8; give a list of at least one"),
        ({"axial_pos_embds_dim": (256, 0)}, "an entry of axial_pos_embds_dim is 0; give an integer of at least 1"),
        ({"axial_pos_embds_dim": (64.0, 192)}, "an entry of axial_pos_embds_dim is 64.0; give an integer"),
        ({"attn_layers": 3}, "attn_layers is 3; give a list of local and lsh"),
        ({"attn_layers": "lsh"}, "attn_layers is 'lsh'; give a list of local and lsh"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0; give a small number"),
        ({"initializer_range": "0.02"}, "initializer_range is '0.02'; give a small number"),
        ({"axial_norm_std": -1.0}, "axial_norm_std is -1.0; give a finite number above 0"),
        ({"attn_layers": []}, r"attn_layers is \[\]; give a list of local and lsh"),
        ({"attn_layers": ["local", "full"]}, "attn_layers is .*'full'.*; give a list of local and lsh"),
        ({"is_decoder": 1}, "is_decoder is 1; give True or False"),
        ({"is_decoder": True, "local_num_chunks_after": 1}, "local_num_chunks_after is 1; give 0: is_decoder sees"),
        ({"is_decoder": True, "lsh_num_chunks_after": 2}, "lsh_num_chunks_after is 2; give 0"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob is 1.0; give one in \[0, 1\)"),
        ({"classifier_dropout": -1}, r"classifier_dropout is -1; give one in \[0, 1\), or None"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'; give one of gelu"),
        ({"lsh_rules": "mine"}, "lsh_rules is 'mine'; give one of trax, paper, lucidrains"),
        ({"problem_type": "other"}, "problem_type is 'other'; give one of regression"),
        ({"axial_pos_embds_dim": [64, 64]}, r"axial_pos_embds_dim is \(64, 64\); make it sum to 256"),
        ({"axial_pos_embds_dim": [256]}, r"axial_pos_embds_dim is \(256,\); give 2: one a side"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ReformerConfig: {message}"):
        ReformerConfig(**settings)


def test_lists_of_a_file_become_tuples() -> None:
    config = ReformerConfig(attn_layers=["lsh"], num_buckets=[4, 8], axial_pos_shape=[8, 8])
    assert config == ReformerConfig(attn_layers=("lsh",), num_buckets=(4, 8), axial_pos_shape=(8, 8))
    assert hash(config) is not None
    assert ReformerConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("layers", "length", "padded"),
    [
        (("local", "lsh"), 6, 6),
        (("local", "lsh"), 7, 24),
        (("local", "lsh"), 8, 24),
        (("local", "lsh"), 24, 24),
        (("local", "lsh"), 25, 48),
        (("local",), 7, 7),
        (("lsh",), 7, 7),
        (("lsh",), 13, 16),
    ],
)
def test_sequences_are_filled_up_to_every_layer_s_chunk(layers: tuple, length: int, padded: int) -> None:
    lsh = 6 if len(layers) == 2 else 8
    config = ReformerConfig(attn_layers=layers, local_attn_chunk_length=8, lsh_attn_chunk_length=lsh)
    assert config.padded(length) == padded


def test_the_longest_sequence_has_a_position_for_each_token() -> None:
    assert ReformerConfig().longest == 4096
    assert ReformerConfig(axial_pos_shape=(4, 8)).longest == 32


def test_a_grid_that_nobody_uses_may_have_no_sides() -> None:
    assert ReformerConfig(axial_pos_embds=False, axial_pos_shape=(), axial_pos_embds_dim=[]).axial_pos_embds_dim == ()
    assert ReformerConfig(axial_pos_embds=False, max_position_embeddings=70).longest == 70
