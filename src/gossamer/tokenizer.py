"""Text to token ids and back: plain bytes, or byte-level BPE, and no torch."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
BYTES = 256


class Tokenizer(ABC):
    """Any text becomes ids and comes back unchanged; none becomes `end_of_text`, which stands between texts.

    Attributes:
        vocab_size: How many ids there are: 0 … vocab_size - 1.
        end_of_text: The id that ends a document.
    """

    vocab_size: int
    end_of_text: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; long lists are spread over the processor's cores where that helps."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become the replacement character.

        Raises:
            ValueError: An id is not in the vocabulary.
        """

    @abstractmethod
    def to_json(self) -> str:
        """Everything the tokenizer knows, the same text for equal tokenizers."""

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json`: equal digests make equal tokens."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into `folder`, for `load_tokenizer`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, FILE).write_text(self.to_json(), encoding="utf-8")

    def _known(self, ids: Iterable[int]) -> list[int]:
        known = [int(token) for token in ids]
        for token in known:
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"ids holds {token}, which is not in the vocabulary; give ids in [0, {self.vocab_size})"
                )
        return known


class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8, and 256 for the end of a text.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    """

    vocab_size = BYTES + 1
    end_of_text = BYTES

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self._bytes(token) for token in self._known(ids)).decode(errors="replace")

    def to_json(self) -> str:
        return json.dumps({"model": {"type": "Bytes"}})

    def _bytes(self, token: int) -> bytes:
        return END_OF_TEXT.encode() if token == self.end_of_text else bytes([token])


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding as in GPT-2: frequent runs of bytes are one id, and every byte has an id.

    >>> tokenizer = BPETokenizer.train(["low lower lowest"] * 9, vocab_size=261)
    >>> tokenizer.decode(tokenizer.encode("slow flow")), len(tokenizer.encode("slow flow"))
    ('slow flow', 5)

    Paper: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        end = tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise ValueError(f"tokenizer has no {END_OF_TEXT!r}, which stands between texts; add it to its vocabulary")
        # A text may spell out the end of a text; only `end_of_text` itself may be it.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())
        self.end_of_text = end

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """The `vocab_size` ids that shorten `texts` most, found greedily; fewer where the texts are short.

        Raises:
            ValueError: `vocab_size` has no room for the 256 bytes and the end of text.
        """
        if vocab_size <= BYTES:
            raise ValueError(f"vocab_size is {vocab_size!r}; give at least {BYTES + 1}: 256 bytes and the end of text")
        tokenizer = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_gpt2(cls, folder: str | Path) -> Self:
        """GPT-2's own tokenizer, from `encoder.json` and `vocab.bpe` (or `vocab.json` and `merges.txt`).

        Raises:
            FileNotFoundError: `folder` holds neither pair.
            ValueError: The files are not a BPE vocabulary and its merges.
        """
        for vocabulary, merges in GPT2_FILES:
            if Path(folder, vocabulary).is_file() and Path(folder, merges).is_file():
                with _naming(folder):
                    model = models.BPE.from_file(str(Path(folder, vocabulary)), str(Path(folder, merges)))
                tokenizer = _byte_level(model)
                tokenizer.add_special_tokens([END_OF_TEXT])
                return cls(tokenizer)
        pairs = " or ".join(" and ".join(pair) for pair in GPT2_FILES)
        raise FileNotFoundError(f"{folder} holds no GPT-2 tokenizer; put {pairs} there")

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(self._known(ids), skip_special_tokens=False)

    def to_json(self) -> str:
        return self._tokenizer.to_str()


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`, or GPT-2's files there.

    Raises:
        FileNotFoundError: `folder` holds neither.
        ValueError: The file is not a tokenizer.
    """
    path = Path(folder, FILE)
    if not path.is_file():
        return BPETokenizer.from_gpt2(folder)
    text = path.read_text(encoding="utf-8")
    if text == ByteTokenizer().to_json():
        return ByteTokenizer()
    with _naming(path):
        return BPETokenizer(tokenizers.Tokenizer.from_str(text))


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"{source} holds no tokenizer that can be read: {error}") from error
