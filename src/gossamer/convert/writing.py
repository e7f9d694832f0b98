"""The sparse configuration on disk: a copy of the model's folder whose config.json names each layer's pattern."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import new_folder
from ..config import GPT2Config, SparseAttentionConfig
from ..models.config_file import FILE, OWN, SPARSE
from ..patterns import Causal, Pattern, Strided, Window
from ..patterns.base import And
from ..patterns.parse import checked_text
from .checkpoint import DenseModel


def write_sparse(model: DenseModel, patterns: Sequence[Pattern], out: str | Path) -> None:
    """`out` holds the model's files and a config.json whose sparse_attention lists the pattern of each layer.

    The folder appears whole or not at all. Files are copied, not linked: what is saved into `out` later must not
    reach the dense model. For a GPT2 of Gossamer its own configuration says the same where it can.

    Raises:
        FileExistsError: `out` is there already and is no empty folder.
        ValueError: `out` is, or lies in, a folder of the dense model.
    """
    require_free(model, out)
    with new_folder(out) as partial:
        for name, source in model.files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, partial / name)
        text = json.dumps(sparse_settings(model.config, patterns), indent=2)
        (partial / FILE).write_text(f"{text}\n", encoding="utf-8")


def require_free(model: DenseModel, out: str | Path) -> None:
    """`out` can be written to without touching the dense model, or what else is there.

    Raises:
        FileExistsError: `out` is there already and is no empty folder.
        ValueError: `out` is, or lies in, a folder of the dense model.
    """
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists and is not an empty folder; it is left as it is: give a new one")
    for source in model.files.values():
        if out.is_relative_to(source.resolve().parent) or out.is_relative_to(source.absolute().parent):
            raise ValueError(f"{out} lies in the dense model's folder {source.parent}; give a folder outside it")


def sparse_settings(config: Mapping[str, Any], patterns: Sequence[Pattern]) -> dict[str, Any]:
    """The model's config.json with the text of each layer's pattern and, where it can say so, GPT2's own settings."""
    settings = {**config, SPARSE: {"patterns": [checked_text(pattern) for pattern in patterns]}}
    split = own_split(config, patterns)
    if split is not None:
        settings[OWN] = {**config[OWN], "use_sparse_attention": True, "sparse_config": split.to_dict()}
    return settings


def own_split(config: Mapping[str, Any], patterns: Sequence[Pattern]) -> SparseAttentionConfig | None:
    """What these patterns are in the own configuration of a GPT2 of Gossamer; None where it cannot say them."""
    return document_split(patterns, GPT2Config.from_dict(config[OWN]).n_head) if OWN in config else None


def document_split(patterns: Sequence[Pattern], heads: int) -> SparseAttentionConfig | None:
    """The design document's configuration that means these patterns, or None where there is none.

    It says: in every layer alike, the first heads see a causal window, and the others every n-th token.

    >>> document_split([PerHead([(Causal() & Window(64), 3), (Causal() & Strided(10), 1)])] * 2, 4).global_heads
    1
    """
    if len(set(patterns)) != 1:
        return None
    match [(pattern, last - first) for first, last, pattern in patterns[0].groups(heads)]:
        case [(And(Causal(), Window(size)), local), (And(Causal(), Strided(every, 0)), far)]:
            return SparseAttentionConfig(local, far, size, 1 / every, adaptive_window=False)
        case [(And(Causal(), Window(size)), local)]:
            return SparseAttentionConfig(local, 0, size, adaptive_window=False)
        case [(And(Causal(), Strided(every, 0)), far)]:
            return SparseAttentionConfig(0, far, global_token_ratio=1 / every, adaptive_window=False)
    return None
