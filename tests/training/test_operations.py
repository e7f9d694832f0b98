"""Operations are those that a count by hand finds, pair by pair and product by product."""

from __future__ import annotations

import pytest
import torch

from gossamer.config import GPT2Config, IndexerConfig, SparseAttentionConfig
from gossamer.models.gpt2 import GPT2
from gossamer.training.operations import operations

LENGTH, LAYERS, HEADS, WIDTH, VOCABULARY = 50, 2, 4, 32, 70
HEAD = WIDTH // HEADS
SHAPE = {"vocab_size": VOCABULARY, "context_size": 64, "n_layer": LAYERS, "n_head": HEADS, "n_embed": WIDTH}

PRODUCTS = 3  # forward, gradient of the input, gradient of the weight
LINEAR = PRODUCTS * 2 * LENGTH * (LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH)  # 3 + 1 + 4 + 4 squares a layer
A_PAIR = 2 * (2 + 5) * HEAD  # two products forward, five backward


def band(window: int, dilation: int = 1) -> int:
    """Pairs of one head that sees so many keys, one by one, itself the last."""
    return sum(
        1 for query in range(LENGTH) for key in range(query, -1, -dilation) if query - key < window * dilation
    )  # fmt: skip


def test_a_dense_model_counts_half_of_the_square() -> None:
    pairs = LAYERS * HEADS * LENGTH * (LENGTH + 1) // 2
    for dropout in (0.0, 0.1):
        counted = operations(GPT2Config(**SHAPE, dropout=dropout), length=LENGTH)
        assert counted == (LINEAR + A_PAIR * pairs, A_PAIR * pairs)
    assert counted.attention_share == A_PAIR * pairs / (LINEAR + A_PAIR * pairs)


def test_bands_and_dilated_heads_count_their_pairs_and_a_wide_one_is_dense() -> None:
    config = GPT2Config(**SHAPE, windows=(7, 64), dilations=(3, 1), dilated_heads=1)
    pairs = 3 * band(7) + band(7, dilation=3) + HEADS * LENGTH * (LENGTH + 1) // 2
    assert operations(config, length=LENGTH) == (LINEAR + A_PAIR * pairs, A_PAIR * pairs)


def test_bands_beside_columns_count_what_the_run_itself_says_it_sees() -> None:
    heads = SparseAttentionConfig(local_heads=3, global_heads=1, window_size=8, min_window_size=2)
    config = GPT2Config(**SHAPE, use_sparse_attention=True, sparse_config=heads)
    model = GPT2(config)
    _, seen = model.features(torch.zeros(1, LENGTH, dtype=torch.int64), return_intermediate=True)
    pairs = sum(3 * int(layer["local_mask"].sum()) + int(layer["global_mask"].sum()) for layer in seen)
    assert 0 < seen[0]["global_mask"].sum() < LENGTH * (LENGTH + 1) // 2
    assert operations(config, length=LENGTH) == (LINEAR + A_PAIR * pairs, A_PAIR * pairs)


def test_positions_that_turn_and_biases_count_nothing() -> None:
    plain, turned = (GPT2Config(**SHAPE, positions=kind, bias=kind == "learned") for kind in ("learned", "rotary"))
    assert operations(plain, length=LENGTH) == operations(turned, length=LENGTH)


def test_a_stage_counts_who_learns_in_it() -> None:
    indexer = IndexerConfig(index_n_heads=2, index_head_dim=8, qk_rope_head_dim=4, index_topk=6)
    config = GPT2Config(**SHAPE, indexer=indexer)
    dense, warm_up, sparse = (
        operations(config, length=LENGTH, stage=stage) for stage in ("dense", "warm_up", "sparse")
    )
    assert sparse.attention < dense.attention
    assert warm_up.total - warm_up.attention < dense.total - dense.attention  # the weights outside indexers rest


def test_counting_draws_no_random_numbers_and_keeps_no_weights() -> None:
    config = GPT2Config(**{**SHAPE, "n_embed": 2**14, "vocab_size": 2**17})  # 20 GiB, if it were there
    state = torch.get_rng_state()
    assert operations(config, length=4).total > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_sequences_count_too(length: int) -> None:
    assert (
        operations(GPT2Config(**SHAPE), length=length).attention == A_PAIR * LAYERS * HEADS * length * (length + 1) // 2
    )
