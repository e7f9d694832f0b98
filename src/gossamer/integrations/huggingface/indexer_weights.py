"""Indexers that were saved with a model of transformers, which does not know them and leaves them in the file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...config import IndexerConfig, tree
from .indexers import Model, add_indexers, indexers_in
from .layers import KEY

FILE, SHARDS = "model.safetensors", "model.safetensors.index.json"
PART = ".indexer."


def load_indexers(model: Model, folder: str | Path) -> Model:
    """The model itself with the indexers that `save_pretrained` wrote into `folder` beside its weights.

    `AutoModelForCausalLM.from_pretrained(folder)` reads all else, and says of the indexers' weights that it did not
    use them.

    Raises:
        FileNotFoundError: There are no safetensors in `folder`.
        ValueError: The model's configuration says nothing of indexers, or their weights are not in the files.
    """
    saved = indexers_in(model.config)
    if saved is None:
        raise ValueError(f"{type(model).__name__} was not saved with indexers; give it new ones with add_indexers")
    stored = _stored(Path(folder))
    delattr(model.config, KEY)
    add_indexers(model, tree.build(IndexerConfig, saved["indexer"], IndexerConfig()))
    own = {name: parameter for name, parameter in model.named_parameters() if PART in name}
    faults = [name for name in own if name not in stored or stored[name].shape != own[name].shape]
    if faults:
        raise ValueError(f"{folder}: {faults[0]} is not among the weights, or has another shape; save the model again")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])
    return model


def _stored(folder: Path) -> dict[str, Tensor]:
    """The indexers' weights in the folder's files."""
    files = [FILE]
    if (folder / SHARDS).is_file():
        weight_map = json.loads((folder / SHARDS).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({file for name, file in weight_map.items() if PART in name})
    found: dict[str, Tensor] = {}
    for path in (folder / name for name in files):
        if path.parent != folder or not path.is_file():
            raise FileNotFoundError(f"{path}: no such file in {folder}; give the folder that save_pretrained wrote")
        with safe_open(path, framework="pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys() if PART in name}  # noqa: SIM118
    return found
