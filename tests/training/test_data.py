"""Tokens on disk are the text, a batch depends on seed and step alone, and a tampered folder is refused."""

import json
import os

import pytest
import torch

from gossamer.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer
from gossamer.training import shards as shards_module
from gossamer.training.config import DataConfig
from gossamer.training.data import TokenDataset
from gossamer.training.preparation import prepare, tokens_for
from gossamer.training.shards import Shards, TokenRow
from gossamer.training.sources import Corpus, UnreadableText


@pytest.fixture
def folder(tmp_path):
    """1,000 bytes that count up, and an end of text: token i is i % 251."""
    (tmp_path / "text.txt").write_text("".join(chr(n % 128) if n % 128 else "!" for n in range(1000)))
    prepare(Corpus([tmp_path / "text.txt"]), tmp_path / "tokens", ByteTokenizer(), validation_share=0.2)
    return tmp_path / "tokens"


def test_the_tokens_decode_to_the_text(text, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 100)
    second = tmp_path / "second.txt"
    second.write_text("naïve\n")
    corpus = Corpus([text, second])
    tokenizer = BPETokenizer.train(corpus.texts(), vocab_size=280)
    shards = prepare(corpus, tmp_path / "tokens", tokenizer)
    row = TokenRow(tmp_path / "tokens", shards).stretch(0, shards.tokens)
    end = tokenizer.end_of_text
    assert tokenizer.decode(row) == f"{text.read_text()}{tokenizer.decode([end])}naïve\n{tokenizer.decode([end])}"
    assert [count for _, count in shards.files][:-1] == [100] * (len(shards.files) - 1)
    assert len(shards.files) > 3
    assert load_tokenizer(tmp_path / "tokens" / "tokenizer").digest == shards.tokenizer == tokenizer.digest
    assert Shards.read(tmp_path / "tokens") == shards


def test_a_stretch_may_span_files(text, tmp_path, monkeypatch) -> None:
    whole = prepare(Corpus([text]), tmp_path / "whole", ByteTokenizer())
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 7)
    cut = prepare(Corpus([text]), tmp_path / "cut", ByteTokenizer())
    one, many = TokenRow(tmp_path / "whole", whole), TokenRow(tmp_path / "cut", cut)
    for first, count in [(0, 1), (0, 7), (0, 8), (6, 1), (6, 2), (7, 7), (13, 30), (whole.tokens - 3, 3)]:
        assert many.stretch(first, count).tolist() == one.stretch(first, count).tolist()


def test_a_vocabulary_beyond_two_bytes_is_kept_in_four(text, tmp_path) -> None:
    class Wide(ByteTokenizer):
        vocab_size = 70_000

        def encode(self, text: str) -> list[int]:
            return [token + 69_000 for token in super().encode(text)]

    shards = prepare(Corpus([text]), tmp_path / "tokens", Wide())
    assert shards.dtype == "uint32"
    assert TokenRow(tmp_path / "tokens", shards).stretch(0, 3).tolist() == Wide().encode("0 t")


def test_targets_are_the_tokens_that_follow(folder) -> None:
    dataset = TokenDataset(folder, "training", context_size=8, batch_size=5)
    for step in range(30):
        tokens, targets = dataset.batch(step)
        assert tokens.shape == targets.shape == (5, 8)
        assert tokens.dtype == targets.dtype == torch.int64
        assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_a_batch_depends_on_seed_and_step_alone(folder) -> None:
    steps = [17, 0, 40, 17, 39, 3]
    used = TokenDataset(folder, "training", context_size=8, batch_size=5, seed=1)
    for step in steps:
        fresh = TokenDataset(folder, "training", context_size=8, batch_size=5, seed=1)
        assert torch.equal(used.batch(step)[0], fresh.batch(step)[0])
    other = TokenDataset(folder, "training", context_size=8, batch_size=5, seed=2)
    assert not torch.equal(used.batch(0)[0], other.batch(0)[0])


def test_an_epoch_visits_every_window_once_and_then_shuffles_again(tmp_path) -> None:
    words = [f"{n:07d}" for n in range(64)]  # 8 bytes each with the newline
    (tmp_path / "text.txt").write_text("\n".join(words))
    prepare(Corpus([tmp_path / "text.txt"]), tmp_path / "tokens", ByteTokenizer(), validation_share=0.1)
    dataset = TokenDataset(tmp_path / "tokens", "training", context_size=8)
    epochs = [
        [tuple(dataset.batch(n)[0][0].tolist()) for n in range(e * dataset.windows, (e + 1) * dataset.windows)]
        for e in range(3)
    ]
    assert dataset.windows > 50
    for epoch in epochs:
        assert len(set(epoch)) == dataset.windows
    assert epochs[0] != epochs[1] != epochs[2]
    assert set(epochs[0]) != set(epochs[1])  # cut at other places


def test_a_batch_may_span_epochs(folder) -> None:
    single = TokenDataset(folder, "training", context_size=90, seed=3)
    triple = TokenDataset(folder, "training", context_size=90, batch_size=3, seed=3)
    assert single.windows % 3
    for step in range(single.windows):
        expected = torch.cat([single.batch(3 * step + row)[0] for row in range(3)])
        assert torch.equal(triple.batch(step)[0], expected)


def test_training_never_sees_the_validation_split(folder) -> None:
    dataset = TokenDataset(folder, "validation", context_size=10, batch_size=8)
    row = TokenRow(folder, dataset.shards).stretch(0, dataset.shards.tokens)
    assert dataset.shards.validation_tokens == 200
    batches = list(dataset.in_order(10**6))
    assert [len(tokens) for tokens, _ in batches] == [8, 8, 3]  # 199 tokens have a successor
    seen = torch.cat([tokens.flatten() for tokens, _ in batches])
    assert seen.tolist() == row[-200:-10].tolist()
    assert sum(len(tokens) for tokens, _ in dataset.in_order(9)) == 9
    training = TokenDataset(folder, "training", context_size=800, seed=0)
    assert training.windows == 1
    assert training.batch(0)[1][0].tolist() == row[1:801].tolist()


@pytest.mark.parametrize(("context", "split"), [(801, "training"), (200, "validation")])
def test_a_split_shorter_than_a_window_is_refused(folder, context: int, split: str) -> None:
    with pytest.raises(UnreadableText, match=rf"the {split} split has .* needs {context + 1}; give more text"):
        TokenDataset(folder, split, context_size=context)


def test_an_unknown_split_is_named(folder) -> None:
    with pytest.raises(ValueError, match="split is 'test'; give one of training, validation"):
        TokenDataset(folder, "test", context_size=8)


def test_text_that_is_too_short_leaves_nothing(tmp_path) -> None:
    (tmp_path / "text.txt").write_text("short")
    with pytest.raises(UnreadableText, match="context_size of 100 needs 101"):
        prepare(Corpus([tmp_path / "text.txt"]), tmp_path / "tokens", ByteTokenizer(), context_size=100)
    assert os.listdir(tmp_path) == ["text.txt"]


def _changed(folder, **changes) -> None:
    sidecar = json.loads((folder / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({**sidecar, **changes}))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": "other"}, "its format is not"),
        ({"extra": 1}, "its keys are not"),
        ({"dtype": "object"}, "dtype is 'object'"),
        ({"files": [["../text.txt", 500]]}, "not the plain name of a file"),
        ({"files": [["/etc/passwd", 500]]}, "not the plain name of a file"),
        ({"files": [["..", 500]]}, "not the plain name of a file"),
        ({"files": [["tokens-00007.bin", 500]]}, "is missing"),
        ({"files": [["tokens-00000.bin", 2**60]]}, "has 2002 bytes where"),
        ({"files": [["tokens-00000.bin", -1]]}, "not a number of tokens"),
        ({"files": [["tokens-00000.bin", 1.5]]}, "not a number of tokens"),
        ({"files": 3}, "not iterable"),
        ({"validation_tokens": 1002}, "more than there are"),
    ],
)
def test_a_sidecar_that_does_not_agree_is_refused(folder, changes, fault: str) -> None:
    _changed(folder, **changes)
    with pytest.raises(ValueError, match=rf"tokens\.json cannot be trusted: .*{fault}"):
        Shards.read(folder)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_broken_sidecar_is_refused(folder, content: str) -> None:
    (folder / "tokens.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be trusted"):
        Shards.read(folder)


def test_a_huge_sidecar_is_not_read(folder, monkeypatch) -> None:
    monkeypatch.setattr(shards_module, "SIDECAR_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        Shards.read(folder)


def test_a_shard_cut_short_is_refused(folder) -> None:
    os.truncate(folder / "tokens-00000.bin", 2000)
    with pytest.raises(ValueError, match=r"tokens-00000\.bin has 2000 bytes where 2002 belong"):
        TokenDataset(folder, "training", context_size=8)


def test_a_token_beyond_the_vocabulary_is_named(folder) -> None:
    _changed(folder, vocab_size=127)
    with pytest.raises(ValueError, match="hold token 127, and their tokenizer has 127; they were changed"):
        TokenDataset(folder, "training", context_size=700).batch(0)


def test_prepared_tokens_are_used_again(text, tmp_path) -> None:
    config = DataConfig(sources=(str(text),), tokenizer="bytes")
    first = tokens_for(config, tmp_path / "tokens", vocab_size=257, context_size=16)
    stamp = os.stat(tmp_path / "tokens" / "tokens-00000.bin").st_mtime_ns
    for same in (config, DataConfig(), DataConfig(tokenizer="bytes")):
        assert tokens_for(same, tmp_path / "tokens", vocab_size=257, context_size=16) == first
    assert os.stat(tmp_path / "tokens" / "tokens-00000.bin").st_mtime_ns == stamp


@pytest.mark.parametrize(
    "other",
    [DataConfig(sources=("other.txt",)), DataConfig(tokenizer="bpe"), DataConfig(validation_share=0.3)],
    ids=["sources", "tokenizer", "validation_share"],
)
def test_tokens_of_another_kind_are_not_used(text, tmp_path, other: DataConfig, request) -> None:
    tokens_for(
        DataConfig(sources=(str(text),), tokenizer="bytes"),
        tmp_path / "tokens",
        vocab_size=257,
        context_size=16,
    )
    name = request.node.callspec.id
    with pytest.raises(ValueError, match=rf"data\.{name} is .*give another data\.folder"):
        tokens_for(other, tmp_path / "tokens", vocab_size=257, context_size=16)


def test_the_tokenizer_is_trained_to_the_models_vocabulary(text, tmp_path) -> None:
    config = DataConfig(sources=(str(text),))
    assert tokens_for(config, tmp_path / "tokens", vocab_size=270, context_size=16).vocab_size == 270
    assert tokens_for(DataConfig(tokenizer="bpe"), tmp_path / "tokens", vocab_size=300, context_size=16)


def test_a_tokenizer_in_a_folder_is_used(text, tmp_path) -> None:
    tokenizer = BPETokenizer.train([text.read_text()], vocab_size=275)
    tokenizer.save(tmp_path / "mine")
    config = DataConfig(sources=(str(text),), tokenizer=str(tmp_path / "mine"))
    shards = tokens_for(config, tmp_path / "tokens", vocab_size=300, context_size=16)
    assert shards.tokenizer == tokenizer.digest


def test_a_vocabulary_too_small_for_the_tokenizer_is_named(text, tmp_path) -> None:
    config = DataConfig(sources=(str(text),), tokenizer="bytes")
    with pytest.raises(
        ValueError, match=r"model\.vocab_size is 256, and the tokenizer has 257 entries; give at least 257"
    ):
        tokens_for(config, tmp_path / "tokens", vocab_size=256, context_size=16)
    assert not (tmp_path / "tokens").exists()


def test_an_unknown_tokenizer_is_named(text, tmp_path) -> None:
    config = DataConfig(sources=(str(text),), tokenizer="words")
    with pytest.raises(ValueError, match=r"data\.tokenizer is 'words'; give bpe, bytes, or a folder"):
        tokens_for(config, tmp_path / "tokens", vocab_size=256, context_size=16)
