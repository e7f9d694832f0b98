"""The design document's configuration: its window, its head groups, its table of recommendations."""

import json
import math

import numpy as np
import pytest

from gossamer.config import SparseAttentionConfig, compute_dynamic_window_size, get_recommended_config
from gossamer.patterns import Causal, PerHead, Strided, Tokens, Window


@pytest.mark.parametrize("length", [0, 1, 7, 128, 129, 512, 1024, 2048, 4096, 10**6])
@pytest.mark.parametrize("base", [1, 64, 128, 300])
def test_the_window_is_the_document_s_formula(length: int, base: int) -> None:
    grown = int(base * math.sqrt(length / base))
    assert compute_dynamic_window_size(length, base) == max(32, min(grown, 512))
    assert compute_dynamic_window_size(length, base, 1, 10**9) == max(1, grown)


def test_the_window_grows_with_the_length_unless_told_not_to() -> None:
    assert [SparseAttentionConfig().window(n) for n in (0, 128, 512, 1024, 4096)] == [32, 128, 256, 362, 512]
    assert SparseAttentionConfig(adaptive_window=False, window_size=7).window(10**6) == 7


def test_the_defaults_are_the_document_s() -> None:
    assert SparseAttentionConfig().to_dict() == {
        "local_heads": 8, "global_heads": 4, "window_size": 128, "global_token_ratio": 0.1, "adaptive_window": True,
        "min_window_size": 32, "max_window_size": 512, "mask_value": -1e9, "max_global_tokens": None,
        "global_rows": False,
    }  # fmt: skip


def test_it_goes_through_json() -> None:
    config = SparseAttentionConfig(4, 2, max_global_tokens=9, global_rows=True)
    assert SparseAttentionConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("ratio, every", [(0.1, 10), (0.3, 3), (0.25, 4), (1.0, 1), (0.7, 1), (0.001, 1000)])
def test_global_tokens_are_every_nth_from_the_first(ratio: float, every: int) -> None:
    assert SparseAttentionConfig(global_token_ratio=ratio).global_pattern() == Causal() & Strided(every)


def test_global_tokens_may_be_capped() -> None:
    config = SparseAttentionConfig(max_global_tokens=3)
    assert config.global_pattern() == Causal() & Tokens([0, 10, 20])
    assert config.global_pattern().dense_mask(500).sum(1).max() == 3


def test_global_tokens_may_see_all_of_their_past() -> None:
    mask = SparseAttentionConfig(global_rows=True).global_pattern().dense_mask(45)
    right = np.tri(45, dtype=bool)
    right[[q for q in range(45) if q % 10]] &= np.arange(45) % 10 == 0
    assert np.array_equal(mask, right)


def test_every_head_follows_its_group() -> None:
    config = SparseAttentionConfig(2, 1, window_size=5, adaptive_window=False)
    assert config.pattern(64) == PerHead([(Causal() & Window(5), 2), (Causal() & Strided(10), 1)])
    assert SparseAttentionConfig(3, 0).pattern(64) == PerHead([(Causal() & Window(90), 3)])
    assert SparseAttentionConfig(0, 3).pattern(64) == PerHead([(Causal() & Strided(10), 3)])


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 500])
def test_no_row_is_empty(length: int) -> None:
    for config in (SparseAttentionConfig(), SparseAttentionConfig(1, 1, 1, 0.001, adaptive_window=False)):
        mask = config.pattern(length).dense_mask(length)
        assert mask.any(-1).all()
        assert not np.triu(mask, 1).any()


def test_a_longer_sequence_keeps_what_a_shorter_one_sees() -> None:
    """Prefill, decoding and training agree once the window is resolved for one length."""
    pattern = SparseAttentionConfig().pattern(400)
    assert np.array_equal(pattern.dense_mask(400)[:, :123, :123], pattern.dense_mask(123))


@pytest.mark.parametrize("heads", range(1, 33))
def test_heads_are_split_in_the_same_proportion(heads: int) -> None:
    split = SparseAttentionConfig(window_size=64).for_heads(heads)
    assert split.n_head == heads and split.window_size == 64
    assert abs(split.local_heads - heads * 2 / 3) <= 0.5 or heads == 1
    assert heads == 1 or (split.local_heads and split.global_heads)
    assert SparseAttentionConfig(5, 0).for_heads(heads).local_heads == heads
    assert SparseAttentionConfig(0, 5).for_heads(heads).global_heads == heads


TABLE = [
    (4096, "small", (4, 2, 128)), (4096, "medium", (8, 4, 256)), (4096, "large", (12, 4, 512)),
    (200, "small", (4, 2, 50)), (200, "medium", (8, 4, 50)), (1000, "large", (12, 4, 250)),
    (3, "small", (4, 2, 1)), (1, "large", (12, 4, 1)),
    (511, None, (4, 2, 64)), (512, None, (8, 4, 128)), (2048, None, (8, 4, 128)), (2049, None, (12, 4, 256)),
]  # fmt: skip


@pytest.mark.parametrize(("length", "size", "expected"), TABLE)
def test_recommendations_are_the_document_s(length: int, size: str | None, expected: tuple) -> None:
    config = get_recommended_config(length, size)
    assert (config.local_heads, config.global_heads, config.window_size) == expected
    assert config.pattern(length).dense_mask(min(length, 300)).any(-1).all()


REFUSED = [
    ({"local_heads": -1}, r"local_heads is -1; .* at least 0"),
    ({"global_heads": 1.5}, r"global_heads is 1\.5; .* integer"),
    ({"local_heads": 0, "global_heads": 0}, r"local_heads and global_heads are both 0; give at least one head"),
    ({"window_size": 0}, r"window_size is 0; .* at least 1"),
    ({"window_size": None}, r"window_size is None; .* integer"),
    ({"min_window_size": 0}, r"min_window_size is 0; .* at least 1"),
    ({"min_window_size": 64, "max_window_size": 32}, r"max_window_size is 32; .* at least 64"),
    ({"global_token_ratio": 0.0}, r"global_token_ratio is 0\.0; give a share in \(0, 1\]"),
    ({"global_token_ratio": 1.1}, r"global_token_ratio is 1\.1; give"),
    ({"global_token_ratio": float("nan")}, r"global_token_ratio is nan; give"),
    ({"global_token_ratio": "0.1"}, r"global_token_ratio is '0\.1'; give"),
    ({"mask_value": 1.0}, r"mask_value is 1\.0; give a large negative number"),
    ({"mask_value": float("nan")}, r"mask_value is nan; give"),
    ({"mask_value": None}, r"mask_value is None; give"),
    ({"max_global_tokens": 0}, r"max_global_tokens is 0; .* at least 1"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_a_bad_field_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"SparseAttentionConfig: {message}"):
        SparseAttentionConfig(**change)


def test_bad_arguments_are_refused() -> None:
    for call, message in (
        (lambda: get_recommended_config(100, "huge"), r"model_size is 'huge'; give one of small, medium, large"),
        (lambda: get_recommended_config(0), r"seq_len is 0; .* at least 1"),
        (lambda: get_recommended_config(9.5, "small"), r"seq_len is 9\.5; .* integer"),
        (lambda: compute_dynamic_window_size(-1, 128), r"seq_len is -1; .* at least 0"),
        (lambda: compute_dynamic_window_size(9, 0), r"base_window is 0; .* at least 1"),
        (lambda: compute_dynamic_window_size(9, 8, 5, 4), r"max_window_size is 4; .* at least 5"),
        (lambda: SparseAttentionConfig().for_heads(0), r"n_head is 0; .* at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
