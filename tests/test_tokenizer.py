"""Any text survives a tokenizer, equal training gives equal ids, and GPT-2's files mean what they meant."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer

TEXTS = ["the cat sat on the mat\n", "the hat of the cat — « naïve »\n"] * 8
BPE = BPETokenizer.train(TEXTS, vocab_size=280)

tokenizers = pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["bytes", "bpe"])


@tokenizers
@given(text=st.text())
def test_any_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@tokenizers
def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


@tokenizers
def test_a_text_cannot_forge_the_end_of_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a{END_OF_TEXT}b")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
    assert tokenizer.decode([tokenizer.end_of_text]) == END_OF_TEXT


@tokenizers
def test_a_saved_tokenizer_loads_equal(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.digest == tokenizer.digest
    assert (loaded.vocab_size, loaded.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert loaded.encode(f"{END_OF_TEXT} the cat") == tokenizer.encode(f"{END_OF_TEXT} the cat")


@tokenizers
@pytest.mark.parametrize("stray", [-1, 10**6])
def test_an_unknown_id_is_named(tokenizer: Tokenizer, stray: int) -> None:
    with pytest.raises(ValueError, match=f"ids holds {stray}.*0, {tokenizer.vocab_size}"):
        tokenizer.decode([1, stray])


def test_bytes_that_are_not_utf8_become_the_replacement_character() -> None:
    assert ByteTokenizer().decode([0xC3]) == "\N{REPLACEMENT CHARACTER}"


def test_bpe_shortens_what_it_was_trained_on() -> None:
    assert BPE.vocab_size == 280
    assert len(BPE.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_equal_training_gives_equal_tokenizers() -> None:
    assert BPETokenizer.train(TEXTS, vocab_size=280).digest == BPE.digest
    assert BPETokenizer.train(TEXTS, vocab_size=279).digest != BPE.digest


def test_bpe_needs_room_for_every_byte() -> None:
    with pytest.raises(ValueError, match="vocab_size is 256; give at least 257"):
        BPETokenizer.train(TEXTS, vocab_size=256)


def test_gpt2_files_merge_in_their_order(tmp_path) -> None:
    letters = [*"abcĠ", "ab", "abc", "Ġa", END_OF_TEXT]
    (tmp_path / "encoder.json").write_text(json.dumps({letter: id for id, letter in enumerate(letters)}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\nab c\nĠ a\n")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("abc ab") == [5, 3, 4]
    assert tokenizer.encode("cab aa") == [2, 4, 6, 0]
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (8, 7)


def test_a_folder_without_a_tokenizer_says_what_to_put_there(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no GPT-2 tokenizer; put encoder\.json and vocab\.bpe"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"model": {"type": "Words"}}'])
def test_a_broken_file_is_named(content: str, tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_end_of_text_is_refused(tmp_path) -> None:
    without = BPE.to_json().replace(END_OF_TEXT, "<|other|>")
    (tmp_path / "tokenizer.json").write_text(without)
    with pytest.raises(ValueError, match="endoftext"):
        load_tokenizer(tmp_path)
