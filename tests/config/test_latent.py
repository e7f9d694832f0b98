"""The shapes of latent attention and of its indexer: what they refuse, and how a config.json is read."""

from __future__ import annotations

import pytest

from gossamer.config import IndexerConfig, LatentConfig, RotaryConfig, YarnConfig


def test_the_defaults_are_those_of_deepseek_v3_2() -> None:
    from transformers import DeepseekV32Config

    theirs = DeepseekV32Config(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    assert LatentConfig.of_model(theirs.to_dict()) == LatentConfig(indexer=IndexerConfig())


def test_a_file_s_yarn_turns_the_indexer_too_and_scales_the_softmax() -> None:
    yarn = {"factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
    made = LatentConfig.of_model({"rope_scaling": {"type": "yarn", **yarn}, "rope_theta": 5e4, "index_topk": 64})
    assert made.rotary == RotaryConfig(5e4, True, YarnConfig(**yarn))
    assert made.indexer == IndexerConfig(index_topk=64, rotary=RotaryConfig(5e4, False, YarnConfig(**yarn)))
    assert made.softmax_scale == pytest.approx(192**-0.5 * 1.8738542070926265)


def test_the_indexer_of_glm_turns_neighbours() -> None:
    from transformers import GlmMoeDsaConfig

    made = LatentConfig.of_model(GlmMoeDsaConfig().to_dict())
    assert made.indexer is not None and made.indexer.rotary.interleaved and made.indexer.index_n_heads == 32
    said = LatentConfig.of_model({"index_topk": 8, "indexer_rope_interleave": True})
    assert said.indexer is not None and said.indexer.rotary.interleaved


def test_a_model_without_an_indexer_and_without_low_rank_queries() -> None:
    made = LatentConfig.of_model({"q_lora_rank": None, "hidden_size": 64, "vocab_size": 7, "rope_interleave": False})
    assert (made.q_lora_rank, made.hidden_size, made.indexer, made.rotary.interleaved) == (None, 64, None, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "LatentConfig: hidden_size is 0"),
        ({"q_lora_rank": 0}, "q_lora_rank is 0"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim is 7; give an even number"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"attention_bias": 1}, "attention_bias is 1"),
        ({"rotary": 1e4}, "rotary is 10000.0; give a RotaryConfig"),
        ({"indexer": 2048}, "indexer is 2048; give an IndexerConfig"),
    ],
)
def test_a_field_out_of_range_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index_topk": 0}, "IndexerConfig: index_topk is 0"),
        ({"index_head_dim": 32}, "qk_rope_head_dim is 64; give an even number of at most index_head_dim=32"),
        ({"qk_rope_head_dim": 3}, "qk_rope_head_dim is 3"),
        ({"rotary": None}, "rotary is None"),
        ({"relu": "no"}, "relu is 'no'"),
    ],
)
def test_a_field_of_the_indexer_out_of_range_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IndexerConfig(**settings)


def test_positions_scaled_by_another_rule_are_refused() -> None:
    with pytest.raises(ValueError, match="rope_type is 'dynamic'"):
        LatentConfig.of_model({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}})


def test_dropped_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"attention_dropout is 0.1; give 0"):
        LatentConfig.of_model({"attention_dropout": 0.1})


@pytest.mark.parametrize("count", [None, 1, 7, 200])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 60), (60, 60), (13, 60)])
def test_the_cheaper_mode_is_that_of_counted_products(queries: int, keys: int, count: int | None) -> None:
    """Each product of the two modes counted one by one, for shapes on either side."""
    chosen = set()
    for heads_width, rank in ((4, 4), (64, 16), (8, 200)):
        config = LatentConfig(64, 2, None, rank, heads_width, 8, heads_width)
        seen = range(keys - queries + 1, keys + 1)
        mha = sum(n * (3 * heads_width + 8 - heads_width) for n in seen) + keys * rank * 2 * heads_width
        few = (min(n, count or n) for n in seen)
        mqa = sum(n * (2 * rank + 8) for n in few) + queries * rank * 2 * heads_width
        assert config.cheaper_mode(queries, keys, count) == ("mha" if mha <= mqa else "mqa")
        chosen.add(config.cheaper_mode(queries, keys, count))
    assert chosen == {"mha", "mqa"} or queries < keys or count in (1, 7)
