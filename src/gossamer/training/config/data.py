"""What a run learns from."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from .ranges import require


@dataclass(frozen=True)
class DataConfig:
    """The text, and how it becomes tokens."""

    sources: tuple[str, ...] = ()
    """Text files, folders of them, or - for standard input. Empty: what `folder` holds already, else the
    source of Python's standard library."""
    folder: str | None = None
    """Where the tokens are kept, for several runs to share; made if missing. None: in the run's folder."""
    tokenizer: str | None = None
    """bpe (trained on the text to `model.vocab_size` entries), bytes, or a folder with encoder.json and
    vocab.bpe or with tokenizer.json. None: what `folder` holds already, else bpe."""
    encoding: str = "utf-8"
    """Character encoding of the text."""
    validation_share: float = 0.05
    """Share of the tokens, at the end of the text, that is kept out of training to evaluate on."""

    def __post_init__(self) -> None:
        if isinstance(self.sources, str):
            raise ValueError(f"DataConfig: sources is {self.sources!r}; give a list, such as [{self.sources!r}]")
        object.__setattr__(self, "sources", tuple(str(source) for source in self.sources))
        require(self, "validation_share", lambda share: 0 < share < 1, "a share between 0 and 1")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(
                f"DataConfig: encoding is {self.encoding!r}; give one Python knows, such as utf-8"
            ) from None
