import pytest

from gossamer.config import EncoderConfig, LongformerConfig

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 99}


def test_a_window_and_a_dilation_are_for_every_layer():
    config = LongformerConfig(**SMALL, attention_window=8, attention_dilation=2)
    assert [config.window(layer) for layer in range(2)] == [8, 8]
    assert [config.dilation(layer) for layer in range(2)] == [2, 2]


def test_layers_and_heads_may_have_their_own():
    config = LongformerConfig(**SMALL, attention_window=[8, 16], attention_dilation=[1, [1, 1, 2, 3]])
    assert config.attention_window == (8, 16)
    assert config.attention_dilation == (1, (1, 1, 2, 3))
    assert hash(config)


def test_plain_values_make_the_same_configuration():
    config = LongformerConfig(**SMALL, attention_dilation=[1, [1, 1, 2, 3]], causal=True)
    assert LongformerConfig(**config.to_dict()) == config


def test_positions_begin_after_the_paddings_own():
    assert LongformerConfig(**SMALL, max_position_embeddings=4098).longest == 4096
    assert EncoderConfig(**SMALL).longest == 512


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_window": 7}, "attention_window is 7; give positive even numbers"),
        ({"attention_window": (8, 0)}, r"attention_window is \(8, 0\); give positive even"),
        ({"attention_window": (8,)}, r"attention_window is \(8,\); give one for each of num_hidden_layers=2"),
        ({"attention_dilation": 0}, "attention_dilation is 0"),
        ({"attention_dilation": (1, (1, 2))}, r"attention_dilation is .*; give a layer one, or 4: one a head"),
        ({"causal": 1}, "causal is 1; give True or False"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob is 1\.0; give one in \[0, 1\)"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'; give one of gelu"),
        ({"problem_type": "guess"}, "problem_type is 'guess'; give one of regression"),
        ({"pad_token_id": 99}, "pad_token_id is 99; give one below 99"),
        ({"pad_token_id": None}, "pad_token_id is None"),
        ({"max_position_embeddings": 2}, r"max_position_embeddings is 2; give more than pad_token_id \+ 1 = 2"),
        ({"hidden_size": 30}, "hidden_size is 30; give a multiple of num_attention_heads=4"),
        ({"num_labels": 0}, "num_labels is 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"LongformerConfig: {message}"):
        LongformerConfig(**SMALL | settings)
