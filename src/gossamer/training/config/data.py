"""What a run learns from."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Literal, get_args

from .ranges import require

Packing = Literal["none", "documents"]


@dataclass(frozen=True)
class DataConfig:
    """The text, and how it becomes tokens."""

    sources: tuple[str, ...] = ()
    """Text files, folders of them, or - for standard input. Empty: `dataset`, else what `folder` holds already, else
    the source of Python's standard library."""
    dataset: str | None = None
    """Instead of sources: a data set of Hugging Face's Hub, a folder of one, or a format (json, parquet, text, csv),
    which the library `datasets` streams (pip install 'gossamer[datasets]')."""
    dataset_files: tuple[str, ...] = ()
    """Files of the format, or of the data set: names, patterns or addresses. Empty: those that it has."""
    dataset_subset: str | None = None
    """Which of the data set's configurations. None: the only one."""
    dataset_split: str = "train"
    """Which of its splits becomes tokens; both training and validation are cut from it."""
    dataset_column: str = "text"
    """The column that holds the text; each row is a document."""
    folder: str | None = None
    """Where the tokens are kept, for several runs to share; made if missing. None: in the run's folder."""
    tokenizer: str | None = None
    """bpe (trained on the text to `model.vocab_size` entries), bytes, or a folder with encoder.json and
    vocab.bpe or with tokenizer.json. None: what `folder` holds already, else bpe."""
    encoding: str = "utf-8"
    """Character encoding of the text."""
    validation_share: float = 0.05
    """Share of the tokens, at the end of the text, that is kept out of training to evaluate on."""
    packing: Packing = "none"
    """none: a sequence is a stretch of the text, and a token sees those of earlier documents in it. documents: each
    document in it is by itself; positions and the pattern begin anew, and none is trained to foresee the next."""

    def __post_init__(self) -> None:
        for name in ("sources", "dataset_files"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise ValueError(f"DataConfig: {name} is {given!r}; give a list, such as [{given!r}]")
            object.__setattr__(self, name, tuple(str(source) for source in given))
        if self.sources and self.dataset:
            raise ValueError(
                f"DataConfig: sources is {self.sources} and dataset is {self.dataset!r}; give one of the two"
            )
        if self.dataset_files and not self.dataset:
            raise ValueError("DataConfig: dataset_files is given without dataset; give their format, such as json")
        if self.packing not in get_args(Packing):
            raise ValueError(f"DataConfig: packing is {self.packing!r}; give one of {', '.join(get_args(Packing))}")
        require(self, "validation_share", lambda share: 0 < share < 1, "a share between 0 and 1")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(
                f"DataConfig: encoding is {self.encoding!r}; give one Python knows, such as utf-8"
            ) from None
