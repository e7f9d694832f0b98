"""A dense model in a local folder: what it must be able to do, and which of the two kinds a folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

from ..models.config_file import FILE, OWN, SPARSE
from .mass import DenseAttention

Listener = Callable[[DenseAttention], None]


@dataclass(frozen=True)
class Layer:
    """The heads of a layer, and the window that it slides over by itself, if it does."""

    heads: int
    key_heads: int
    window: int | None


class DenseModel(Protocol):
    """A model in a folder whose attention can be listened to.

    Attributes:
        opening: Tokens that every sequence begins with.
        vocabulary: Its tokens are below this number.
        positions: The longest sequence it can read; None: no limit is known.
        config: What its config.json says.
        files: Its other files by their name in the folder: weights, tokenizer, licence.
    """

    opening: tuple[int, ...]
    vocabulary: int
    positions: int | None
    config: dict[str, Any]
    files: dict[str, Path]

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` without the opening."""
        ...

    def read(self, tokens: Int64[Tensor, "1 N"], listen: Listener) -> None:
        """Runs the model and calls `listen` with each layer's attention, in the order of the layers."""
        ...

    def survey(self, tokens: Int64[Tensor, "1 N"]) -> tuple[Layer, ...]:
        """Its layers, after a check that what is listened to is the attention which the model computes.

        Raises:
            ValueError: It is not; the message says what differs.
        """
        ...


def open_model(
    folder: str | Path, *, tokenizer: str | Path | None = None, device: torch.device | str = "cpu"
) -> DenseModel:
    """The dense model in a folder, written by Gossamer's GPT2 or by transformers; nothing is downloaded.

    Args:
        tokenizer: Folder of its tokenizer; by default the same.

    Raises:
        FileNotFoundError: There is no model in `folder`, or no tokenizer in its place.
        ValueError: The model is damaged, of an unknown kind, or sparse already.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config.get(SPARSE) is not None:
        raise ValueError(f"{folder} is sparse already, by {SPARSE} in its {FILE}; give the dense model it came from")
    place = folder if tokenizer is None else Path(tokenizer)
    if OWN in config:
        from .gossamer_gpt2 import GossamerGPT2

        return GossamerGPT2(folder, place, config, device)
    from .huggingface import TransformersModel

    return TransformersModel(folder, place, config, device)


def read_config(folder: str | Path) -> dict[str, Any]:
    """What the folder's config.json says.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no JSON table.
    """
    path = Path(folder, FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {FILE}; give the folder of a model, as save_pretrained writes it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; fetch it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {config!r} where a table of settings is expected; fetch it again")
    return config


def layer_of(seen: DenseAttention) -> Layer:
    """The shape of the layer that was listened to."""
    return Layer(seen.q.shape[1], seen.k.shape[1], seen.window)
