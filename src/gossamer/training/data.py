"""From text to shards of tokens, and from shards to the batch of any training step."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ..atomic import new_folder
from ..tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer
from .config import DataConfig
from .shards import SIDECAR, Shards, ShardWriter, TokenRow
from .share import WHOLE, Share
from .sources import Corpus, UnreadableText, python_library_sources

PIECES_AT_ONCE = 32
TOKENIZER = "tokenizer"  # folder beside the shards

Split = Literal["training", "validation"]


def prepare(
    corpus: Corpus,
    folder: str | Path,
    tokenizer: Tokenizer,
    *,
    validation_share: float = 0.05,
    context_size: int = 1,
) -> Shards:
    """Make `folder`: the tokens of `corpus`, an end of text after each document, and the tokenizer.

    The folder appears complete or not at all.

    Args:
        validation_share: Share of the tokens, at the end, that training never sees.
        context_size: Both splits must fill at least one window of this length.

    Raises:
        UnreadableText: A piece of text cannot be read, or there is too little of it.
        FileExistsError: `folder` holds something already.
    """
    with new_folder(folder) as partial:
        writer = ShardWriter(partial, tokenizer.vocab_size)
        pieces = corpus.pieces()
        while group := list(islice(pieces, PIECES_AT_ONCE)):
            for tokens, (_, ends) in zip(tokenizer.encode_batch([text for text, _ in group]), group, strict=True):
                writer.append(tokens + [tokenizer.end_of_text] * ends)
        shards = Shards(
            dtype=writer.dtype,
            files=tuple(writer.files),
            validation_tokens=round(validation_share * sum(count for _, count in writer.files)),
            vocab_size=tokenizer.vocab_size,
            tokenizer=tokenizer.digest,
            sources=corpus.sources,
            validation_share=validation_share,
        )
        for split in get_args(Split):
            require_window(shards, split, context_size)
        tokenizer.save(partial / TOKENIZER)
        shards.write(partial)
    return shards


def require_window(shards: Shards, split: Split, context_size: int) -> None:
    """Refuse a split that is shorter than one window and the token after it."""
    _, count = _extent(shards, split)
    if count <= context_size:
        raise UnreadableText(
            f"the {split} split has {count} of the text's {shards.tokens} tokens, and a context_size of "
            f"{context_size} needs {context_size + 1}; give more text, a smaller model.context_size or "
            f"another data.validation_share than {shards.validation_share}"
        )


class TokenDataset:
    """The windows of a split: shuffled for training, or in order for evaluation.

    The batch of a step depends on `seed` and the step alone, so there is nothing to save or restore. An epoch
    visits every window once in an order of its own, and each epoch cuts the row at other places.

    Args:
        folder: What `prepare` made.
        split: "training", or "validation" for the tokens at the end.

    Raises:
        FileNotFoundError: `folder` holds no tokens.
        ValueError: The tokens do not agree with their sidecar, or the split is shorter than a window.
    """

    def __init__(self, folder: str | Path, split: Split, *, context_size: int, batch_size: int = 1, seed: int = 0):
        self.shards = Shards.read(folder)
        require_window(self.shards, split, context_size)
        self._row = TokenRow(folder, self.shards)
        self._first, count = _extent(self.shards, split)
        self._context, self._batch, self._seed = context_size, batch_size, seed
        # One window is given up, where there are several, to make room for the shift of an epoch.
        self.windows = max(1, (count - 1) // context_size - 1)
        self._slack = count - 1 - self.windows * context_size
        self._epoch, self._order, self._shift = -1, np.empty(0, np.int64), 0

    def batch(self, step: int, share: Share = WHOLE) -> tuple[Int64[Tensor, "B N"], Int64[Tensor, "B N"]]:
        """(tokens, the token after each) of training step `step`, counted from 0: of a share of its sequences."""
        return self._tensors([self._drawn(step * self._batch + row) for row in share.among(self._batch)])

    def in_order(self, limit: int) -> Iterator[tuple[Int64[Tensor, "B N"], Int64[Tensor, "B N"]]]:
        """The first `limit` windows of the split, or all there are, in batches; the last may be short."""
        count = min(limit, (self._slack + self.windows * self._context) // self._context)
        for start in range(0, count, self._batch):
            windows = range(start, min(start + self._batch, count))
            yield self._tensors([window * self._context for window in windows])

    def _drawn(self, draw: int) -> int:
        epoch, place = divmod(draw, self.windows)
        if epoch != self._epoch:
            # random_raw is the one stream that numpy promises never to change
            noise = np.random.Philox(key=[self._seed, epoch]).random_raw(self.windows + 1)
            self._epoch, self._order = epoch, np.argsort(noise[1:], kind="stable")
            self._shift = int(noise[0] % np.uint64(self._slack + 1))
        return int(self._order[place]) * self._context + self._shift

    def _tensors(self, starts: list[int]) -> tuple[Tensor, Tensor]:
        rows: NDArray[np.int64] = np.stack(
            [self._row.stretch(self._first + start, self._context + 1) for start in starts]
        )
        if rows.max() >= self.shards.vocab_size:
            raise ValueError(
                f"the shards hold token {rows.max()}, and their tokenizer has {self.shards.vocab_size}; "
                "they were changed: prepare the tokens again in a new folder"
            )
        tokens = torch.from_numpy(rows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def tokens_for(config: DataConfig, folder: str | Path, *, vocab_size: int, context_size: int) -> Shards:
    """The tokens that `config` describes, in `folder`: those already there, or new ones.

    Args:
        vocab_size: Entries of a BPE that is trained on the text, and the most that any tokenizer may have.
        context_size: Both splits must fill a window of this length.

    Raises:
        UnreadableText: The text cannot be used.
        ValueError: The tokenizer does not fit, or `folder` holds another text than `config` asks for.
    """
    if Path(folder, SIDECAR).is_file():
        return _reused(config, Path(folder), vocab_size, context_size)
    corpus = Corpus(config.sources or python_library_sources(), encoding=config.encoding)
    tokenizer = _tokenizer(config.tokenizer or "bpe", corpus, vocab_size)
    _require_room(tokenizer, vocab_size)
    return prepare(corpus, folder, tokenizer, validation_share=config.validation_share, context_size=context_size)


def _reused(config: DataConfig, folder: Path, vocab_size: int, context_size: int) -> Shards:
    shards, tokenizer = Shards.read(folder), load_tokenizer(folder / TOKENIZER)
    _require_room(tokenizer, vocab_size)
    for split in get_args(Split):
        require_window(shards, split, context_size)
    wanted = {
        "sources": (config.sources or shards.sources, shards.sources),
        "validation_share": (config.validation_share, shards.validation_share),
        "tokenizer": (_digest(config.tokenizer, tokenizer), shards.tokenizer),
    }
    for name, (asked, there) in wanted.items():
        if asked != there:
            raise ValueError(
                f"data.{name} is {getattr(config, name)!r}, but the tokens in {folder} were made with "
                f"another ({there}); give another data.folder, or leave data.{name} out to use these tokens"
            )
    return shards


def _digest(name: str | None, there: Tokenizer) -> str:
    """What the tokenizer called `name` would be; None and bpe ask for nothing that `there` cannot be."""
    if name is None or (name == "bpe" and isinstance(there, BPETokenizer)):
        return there.digest
    return "a trained bpe" if name == "bpe" else _named_tokenizer(name).digest


def _tokenizer(name: str, corpus: Corpus, vocab_size: int) -> Tokenizer:
    return BPETokenizer.train(corpus.texts(), vocab_size) if name == "bpe" else _named_tokenizer(name)


def _named_tokenizer(name: str) -> Tokenizer:
    if name == "bytes":
        return ByteTokenizer()
    if not Path(name).is_dir():
        raise ValueError(f"data.tokenizer is {name!r}; give bpe, bytes, or a folder that holds a tokenizer")
    return load_tokenizer(name)


def _require_room(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"model.vocab_size is {vocab_size}, and the tokenizer has {tokenizer.vocab_size} entries; "
            f"give at least {tokenizer.vocab_size}"
        )


def _extent(shards: Shards, split: Split) -> tuple[int, int]:
    """(first token, tokens) of a split."""
    training = shards.tokens - shards.validation_tokens
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; give one of {', '.join(get_args(Split))}")
    return (0, training) if split == "training" else (training, shards.validation_tokens)
