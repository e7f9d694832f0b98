"""From text to a folder of tokens: by one process or several, at once or in several goes, always the same folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from ..tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer
from . import sources, tokenising
from .config import DataConfig
from .dataset_text import DatasetText, Where, named
from .journal import TOKENIZER, making, sweep
from .shards import SHARD_TOKENS, SIDECAR, Shards, ShardWriter, Split, require_window
from .sources import Corpus, Text, python_library_sources

TRAINING_TEXT = 2**28
"""Characters, from the beginning, that a tokenizer is trained on: more of them change little but time and memory."""


def prepare(
    text: Text,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    vocab_size: int = 4096,
    validation_share: float = 0.05,
    context_size: int = 1,
    workers: int = 1,
    on_unit: Callable[[int], None] | None = None,
) -> Shards:
    """Make `folder`: the tokens of `text`, an end of text after each document, and the tokenizer.

    The folder appears complete or not at all, and is the same, byte for byte, for any number of workers and after any
    number of interruptions: what is done stays beside it, as `.NAME.preparing`, and the same call goes on from there.

    Args:
        tokenizer: None: byte-level BPE, trained on the first 2^28 characters of the text.
        vocab_size: Entries of the tokenizer that is trained here.
        validation_share: Share of the tokens, at the end, that training never sees.
        context_size: Both splits must fill at least one window of this length.
        workers: Processes that make tokens. They are started afresh: with more than one, a script must have its
            `if __name__ == "__main__":`.
        on_unit: Called with the number of tokens so far, whenever some are written.

    Raises:
        UnreadableText: A piece of text cannot be read, or there is too little of it.
        FileExistsError: `folder` holds something already.
        RuntimeError: Another process is making `folder`, or a worker was ended from outside.
    """
    if workers < 1:
        raise ValueError(f"prepare: workers is {workers}; give at least 1")
    with making(folder) as made:
        known = f"bpe of {vocab_size} entries" if tokenizer is None else tokenizer.digest
        constants = [sources.PIECE, tokenising.UNIT, SHARD_TOKENS, TRAINING_TEXT]
        asked = {"text": text.fingerprint, "tokenizer asked": known, "constants": constants}
        found = made.tokenizer(asked, lambda: trained(text, vocab_size) if tokenizer is None else tokenizer)
        tokenizer = found if tokenizer is None else tokenizer
        made.tokens.mkdir(exist_ok=True)
        writer = ShardWriter(made.tokens, tokenizer.vocab_size)
        units = tokenising.units(text.pieces(made.resume(writer)))
        by = made.tokenizer_folder
        for tokens, place in tokenising.tokenised(units, tokenizer, by, dtype=writer.dtype, workers=workers):
            made.append(tokens, place)
            if on_unit is not None:
                on_unit(writer.tokens)
        shards = Shards(
            dtype=writer.dtype,
            files=tuple(writer.files),
            validation_tokens=round(validation_share * writer.tokens),
            vocab_size=tokenizer.vocab_size,
            tokenizer=tokenizer.digest,
            sources=text.sources,
            validation_share=validation_share,
        )
        for split in get_args(Split):
            require_window(shards, split, context_size)
        tokenizer.save(made.tokens / TOKENIZER)
        shards.write(made.tokens)
    return shards


def trained(text: Text, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` entries, trained on the beginning of the text."""
    return BPETokenizer.train(_beginning(text), vocab_size)


def _beginning(text: Text) -> Iterator[str]:
    room = TRAINING_TEXT
    for piece in text.pieces():
        yield piece.text
        room -= len(piece.text)
        if room <= 0:
            return


def tokens_for(
    config: DataConfig,
    folder: str | Path,
    *,
    vocab_size: int,
    context_size: int,
    workers: int = 1,
    on_unit: Callable[[int], None] | None = None,
) -> Shards:
    """The tokens that `config` describes, in `folder`: those already there, or new ones.

    Args:
        vocab_size: Entries of a BPE that is trained on the text, and the most that any tokenizer may have.
        context_size: Both splits must fill a window of this length.
        workers: As `prepare` has it.
        on_unit: As `prepare` has it.

    Raises:
        UnreadableText: The text cannot be used.
        ValueError: The tokenizer does not fit, or `folder` holds another text than `config` asks for.
        RuntimeError: Another process is making `folder`, or a worker was ended from outside.
    """
    if Path(folder, SIDECAR).is_file():
        sweep(folder)
        return _reused(config, Path(folder), vocab_size, context_size)
    text = text_of(config)
    tokenizer = None if config.tokenizer in (None, "bpe") else _named_tokenizer(config.tokenizer)
    if tokenizer is not None:
        _require_room(tokenizer, vocab_size)
    return prepare(
        text,
        folder,
        tokenizer,
        vocab_size=vocab_size,
        validation_share=config.validation_share,
        context_size=context_size,
        workers=workers,
        on_unit=on_unit,
    )


def text_of(config: DataConfig) -> Text:
    """The text that `config` describes.

    Raises:
        UnreadableText: It is not there.
    """
    if config.dataset is None:
        return Corpus(config.sources or python_library_sources(), encoding=config.encoding)
    return DatasetText(config.dataset, **_where(config))


def _names(config: DataConfig) -> tuple[str, ...]:
    """What a folder of the tokens would call its sources; empty where `config` asks for none."""
    return config.sources if config.dataset is None else named(config.dataset, **_where(config))


def _where(config: DataConfig) -> Where:
    return Where(
        files=config.dataset_files,
        subset=config.dataset_subset,
        split=config.dataset_split,
        column=config.dataset_column,
    )


def _reused(config: DataConfig, folder: Path, vocab_size: int, context_size: int) -> Shards:
    shards, tokenizer = Shards.read(folder), load_tokenizer(folder / TOKENIZER)
    _require_room(tokenizer, vocab_size)
    for split in get_args(Split):
        require_window(shards, split, context_size)
    name = "dataset" if config.dataset else "sources"
    wanted = {
        name: (_names(config) or shards.sources, shards.sources),
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
