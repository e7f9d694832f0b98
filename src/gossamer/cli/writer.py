"""The two kinds of models that `gossamer generate` writes with: Gossamer's own, and those of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..generation_config import SamplingConfig
from ..models.config_file import FILE, OWN, SPARSE

if TYPE_CHECKING:
    from torch import Tensor


class Vocabulary(Protocol):
    """What turns text into ids and back."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        ...


@dataclass(frozen=True)
class Writer:
    """A model that is loaded, with its vocabulary."""

    vocabulary: Vocabulary
    begin: tuple[int, ...]
    """What an empty prompt is replaced by."""
    stop: tuple[int, ...]
    """What ends a text."""
    stream: Callable[[list[list[int]], SamplingConfig], Iterator[Tensor]]


def is_of_transformers(model: Path) -> bool:
    """Whether the folder holds a model that transformers is to run: any but a GPT-2 that Gossamer reads itself."""
    stated = _stated(model)
    if OWN in stated or "model_type" not in stated:
        return False
    return stated["model_type"] != "gpt2" or SPARSE in stated


def own_writer(weights: Path, vocabulary: Path, device: Any) -> Writer:
    """A GPT-2 of Gossamer, or one of transformers that it reads."""
    import torch

    from ..generation import stream
    from ..models.gpt2 import GPT2
    from ..tokenizer import load_tokenizer

    tokenizer, model = load_tokenizer(vocabulary), GPT2.load(weights, device=device)

    def write(prompts: list[list[int]], sampling: SamplingConfig) -> Iterator[Tensor]:
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        rows = [[0] * some + prompt for some, prompt in zip(padding, prompts, strict=True)]
        return stream(model, torch.tensor(rows, device=device), sampling, padding=padding if any(padding) else None)

    end = (tokenizer.end_of_text,)
    return Writer(tokenizer, end, end, write)


def transformers_writer(folder: Path, pattern: str | None, device: Any) -> Writer:
    """A decoder of transformers, made sparse by the pattern, or by what its configuration says.

    Raises:
        ValueError: There is neither.
    """
    if pattern is None and SPARSE not in _stated(folder):
        raise ValueError(
            f"--model {folder} is dense; give --pattern 'Window(1024) | Sinks(4)', or choose one by gossamer convert"
        )
    from transformers import AutoTokenizer

    from ..integrations.huggingface import stream
    from ..integrations.huggingface.loading import load_sparse
    from ..patterns import parse

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = load_sparse(folder, None if pattern is None else parse(pattern), device=device)
    ends = model.generation_config.eos_token_id
    stop = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
    begin = next((id for id in (tokenizer.bos_token_id, *stop) if id is not None), 0)
    return Writer(tokenizer, (begin,), stop, lambda prompts, sampling: stream(model, prompts, sampling))


def _stated(model: Path) -> dict[str, Any]:
    """What the folder's config.json says; nothing where there is none, or where it is damaged."""
    try:
        stated = json.loads((model / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stated if isinstance(stated, dict) else {}
