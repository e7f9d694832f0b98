"""GPT-2's weights on disk: safetensors and config.json, in the layout that transformers reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..atomic import new_file
from ..config import GPT2Config
from ..nn.indexer import LightningIndexer
from . import config_file
from .initial_weights import INDEXER

WEIGHTS = "model.safetensors"
PREFIX = "transformer."
HEAD = "lm_head.weight"
MASKS = (".attn.bias", ".attn.masked_bias")  # causal masks that old files carry as buffers
CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # [in, out]: the transpose of nn.Linear's
FLOATS = ("F64", "F32", "F16", "BF16")
OFFICIAL_HEAD_WIDTH = 64  # of every GPT-2 that OpenAI released


def layout(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a model of this shape has on disk."""
    width = config.n_embed
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    if config.positions == "learned":
        shapes["wpe.weight"] = (config.context_size, width)
    for block in (f"h.{layer}" for layer in range(config.n_layer)):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        for linear, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            shapes |= {f"{block}.{linear}.weight": (rows, columns), f"{block}.{linear}.bias": (columns,)}
    shapes = {name: shape for name, shape in shapes.items() if config.bias or not name.endswith(".bias")}
    return shapes | _layout_of_indexers(config)


def _layout_of_indexers(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    if config.indexer is None:
        return {}
    with torch.device("meta"):
        indexer = LightningIndexer(config.n_embed, config.n_embed, config.indexer)
    return {
        name: tuple(parameter.shape)
        for layer in range(config.n_layer)
        for name, parameter in indexer.named_parameters(INDEXER.format(layer=layer))
    }


def read(source: str | Path) -> tuple[GPT2Config, dict[str, Tensor]]:
    """The configuration and the state dict (float32, on the CPU) in a folder or a safetensors file.

    Every tensor's name, shape and dtype is checked before the first one is read.

    Raises:
        FileNotFoundError: There are no weights at `source`.
        ValueError: They are damaged or no GPT-2's; the message names the file, the tensor and the fix.
    """
    path = _weights_file(Path(source))
    with opened(path) as file:
        names = file.keys()
        stored = {name.removeprefix(PREFIX): name for name in names if not name.endswith(MASKS)}
        shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in stored.items()}
        config = _config_for(path, shapes)
        _require_layers(path, shapes, config)
        _require_layout(path, shapes, layout(config))
        for name, key in stored.items():
            require_floats(path, name, file.get_slice(key).get_dtype())
        state = {name: file.get_tensor(key) for name, key in stored.items()}
        _require_tied(path, state.pop(HEAD, state["wte.weight"]), state["wte.weight"])
        return config, {name: owned(_turned(name, tensor)) for name, tensor in state.items()}


def write(folder: str | Path, config: GPT2Config, state: Mapping[str, Tensor]) -> None:
    """Writes both files of a model; each appears whole or not at all.

    Raises:
        OSError: There is no room or no permission; what the folder held before is untouched.
    """
    folder = Path(folder)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in as_stored(state).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / config_file.FILE) as new_config, new_file(folder / WEIGHTS) as new_weights:
            config_file.write(new_config, config)
            save_file(tensors, new_weights, metadata={"format": "pt"})
            new_weights.chmod(new_config.stat().st_mode)  # safetensors shuts everyone else out
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{folder}: the model was not saved ({error}) and what the folder held is untouched; "
            "free some space or save elsewhere"
        ) from error


def as_stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict under the names and in the layout that they have on disk, without a copy."""
    return {PREFIX + name: _turned(name, tensor) for name, tensor in state.items()}


def resized(
    config: GPT2Config, state: Mapping[str, Tensor], *, context_size: int | None, vocab_size: int | None
) -> tuple[GPT2Config, dict[str, Tensor]]:
    """The model at another context, its position table (if any) repeated or cut, and with a padded vocabulary.

    Raises:
        ValueError: `vocab_size` is smaller than the vocabulary.
    """
    state, tokens = dict(state), state["wte.weight"]
    if context_size is not None:
        config = replace(config, context_size=context_size)
        if (positions := state.get("wpe.weight")) is not None:
            state["wpe.weight"] = positions[torch.arange(context_size) % len(positions)]
    if vocab_size is not None and vocab_size != config.vocab_size:
        if vocab_size < config.vocab_size:
            raise ValueError(
                f"GPT2.load: vocab_size is {vocab_size}, but the file has {config.vocab_size} tokens; "
                "give at least that"
            )
        tokens = F.pad(tokens, (0, 0, 0, vocab_size - config.vocab_size))
        config = replace(config, vocab_size=vocab_size, unpadded_vocab_size=config.known_tokens)
    return config, {**state, "wte.weight": tokens}


def _weights_file(source: Path) -> Path:
    path = source / WEIGHTS if source.is_dir() else source
    if path.is_file():
        return path
    if (source / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{source}: a training run, not a model; load one of the folders in {source / 'checkpoints'}"
        )
    if (source / f"{WEIGHTS}.index.json").is_file():
        raise FileNotFoundError(f"{source}: weights in several files; save them as one, with max_shard_size='100GB'")
    if (source / "pytorch_model.bin").is_file():
        raise FileNotFoundError(
            f"{source}: weights as a pickle, which can run code and is never opened; "
            "convert them with transformers: save_pretrained(folder, safe_serialization=True)"
        )
    raise FileNotFoundError(f"{path}: no such file; give a folder with {WEIGHTS}, or a .safetensors file")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The safetensors file, open to be read; a damaged one is a ValueError that names it."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path}: no whole safetensors file ({error}); it was cut short or is another format: fetch it again"
        ) from error


def _config_for(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> GPT2Config:
    settings = path.with_name(config_file.FILE)
    return config_file.read(settings) if settings.is_file() else _inferred(path, shapes)


def _inferred(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> GPT2Config:
    tables = [shapes.get(name, ()) for name in ("wte.weight", "wpe.weight")]
    if any(len(shape) != 2 for shape in tables):
        raise ValueError(f"{path}: no GPT-2: it has no tables wte.weight and wpe.weight; give a GPT-2's weights")
    (vocabulary, width), (context, _) = tables
    if width % OFFICIAL_HEAD_WIDTH:
        raise ValueError(
            f"{path}: the number of heads is unknown, as width {width} is no multiple of "
            f"{OFFICIAL_HEAD_WIDTH}; put the model's {config_file.FILE} beside it"
        )
    return GPT2Config(
        vocab_size=vocabulary,
        context_size=context,
        n_layer=_layers(shapes),
        n_head=width // OFFICIAL_HEAD_WIDTH,
        n_embed=width,
        bias="ln_f.bias" in shapes,
    )


def _layers(names: Iterable[str]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("h.")})


def _require_layers(path: Path, names: Iterable[str], config: GPT2Config) -> None:
    # Before anything grows with a number that was read from a file.
    if config.n_layer != _layers(names):
        raise ValueError(
            f"{path}: it has {_layers(names)} layers, but {config_file.FILE} says {config.n_layer}; "
            f"give a GPT-2's weights with the {config_file.FILE} that was saved with them"
        )


def _require_layout(path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"{name} is missing" for name in expected.keys() - shapes.keys()]
    faults += [f"{name} is no part of a GPT-2" for name in shapes.keys() - expected.keys() - {HEAD}]
    faults += [
        f"{name} has shape {list(shapes[name])} where {list(shape)} is expected"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise ValueError(
            f"{path}: {shown}. Give a GPT-2's weights with the {config_file.FILE} that was saved with them"
        )


def require_floats(path: Path, name: str, dtype: str) -> None:
    """A tensor of the file holds plain floating-point numbers, or this raises ValueError."""
    if dtype not in FLOATS:
        raise ValueError(f"{path}: {name} is {dtype}; give weights that are one of {', '.join(FLOATS)}, not quantised")


def _require_tied(path: Path, head: Tensor, table: Tensor) -> None:
    if not torch.equal(head, table):
        raise ValueError(f"{path}: {HEAD} differs from wte.weight; GPT2 ties them: tie them and save again")


def owned(tensor: Tensor) -> Tensor:
    """A float32 copy: a model must not live in a mapped file, which may change under it."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _turned(name: str, tensor: Tensor) -> Tensor:
    """The tensor in the other convention: Conv1D's [in, out] for Linear's [out, in], and back."""
    return tensor.T if name.endswith(CONV1D) else tensor
