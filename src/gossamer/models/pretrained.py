"""Encoders on disk: config.json and safetensors, whole or in shards, in the layout of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic import new_file
from ..config import EncoderConfig, ReformerConfig
from .config_file import FILE
from .weights import WEIGHTS, opened, owned, require_floats

Config = TypeVar("Config", bound=EncoderConfig | ReformerConfig)
Model = TypeVar("Model", bound=nn.Module)
Renames = tuple[tuple[str, str], ...]

INDEX = f"{WEIGHTS}.index.json"

# What an encoder computes, as transformers' configuration calls it; the first value is the default.
SUPPORTED: dict[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute",),
    "tie_word_embeddings": (True,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}

BODY: Renames = (
    (r"^embeddings\.tokens\.", "embeddings.word_embeddings."),
    (r"^embeddings\.positions\.", "embeddings.position_embeddings."),
    (r"^embeddings\.token_types\.", "embeddings.token_type_embeddings."),
    (r"^embeddings\.norm\.", "embeddings.LayerNorm."),
    (r"^blocks\.(\d+)\.attention\.(query|key|value)", r"encoder.layer.\1.attention.self.\2"),
    (r"^blocks\.(\d+)\.attention\.output\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.attention_norm\.", r"encoder.layer.\1.attention.output.LayerNorm."),
    (r"^blocks\.(\d+)\.mlp\.up\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.down\.", r"encoder.layer.\1.output.dense."),
    (r"^blocks\.(\d+)\.mlp_norm\.", r"encoder.layer.\1.output.LayerNorm."),
)
"""How a body's tensors are called in files of transformers."""


@dataclass(frozen=True)
class Family:
    """How transformers' files spell one kind of encoder."""

    model_type: str
    prefix: str
    """Stands before the body's names where a head was saved with it."""
    heads: Mapping[str, tuple[str, Renames]]
    """For each head: the name of transformers' class, and how its tensors are called."""
    repeated: Mapping[str, str]
    """Tensors that a file may hold a second time, and what they repeat."""
    left: tuple[str, ...] = field(default=("embeddings.position_ids", "embeddings.token_type_ids"))
    """Beginnings of names that are read by nobody here."""
    left_ends: tuple[str, ...] = ()
    """Ends of such names."""
    supported: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: SUPPORTED)
    """What is computed, by the keys of config.json; the first value is what a missing key says."""
    body: Renames = BODY
    otherwise: Mapping[str, str] = field(default_factory=dict)
    """For names that a file may lack: where else the same numbers are."""
    theirs: Callable[[Any], bool] = lambda config: True
    """Whether transformers computes what a configuration describes."""

    @property
    def own_type(self) -> str:
        """The `model_type` of what transformers does not compute: its Auto classes refuse it, and others warn."""
        return f"gossamer_{self.model_type}"

    def stored_name(self, name: str, head: str | None) -> str:
        """What one of a model's tensors is called in a file, without the prefix."""
        renames = self.body if head is None else (*self.body, *self.heads[head][1])
        for ours, theirs in renames:
            found, times = re.subn(ours, theirs, name)
            if times:
                return found
        raise ValueError(f"{name}: no tensor of a {self.model_type} with head {head!r}")

    def belongs(self, stored: str) -> bool:
        """Whether a name of a file is another head's, or one that nobody reads."""
        others = [theirs for _, renames in self.heads.values() for _, theirs in renames]
        left = stored.startswith((*self.left, *others)) or stored.endswith(self.left_ends)
        return stored in self.repeated or left


class Pretrained:
    """Reads and writes folders in the layout of transformers, of modules made of a configuration and a head."""

    family: ClassVar[Family]
    kind: ClassVar[type[EncoderConfig] | type[ReformerConfig]]
    """Of its configuration."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        head: str | None = None,
        new_head: bool = False,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The model in a folder that transformers' `save_pretrained` wrote, in float32; weights may be in shards.

        Args:
            head: Which head to read. Tensors of other heads are left.
            new_head: Where the folder has none of the head's tensors, begin it anew.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: Something is damaged, unknown or missing; the message names the file, the tensor and the fix.
        """
        return cls._read(folder, head, new_head).to(device)

    @classmethod
    def _read(cls, folder: str | Path, head: str | None, new_head: bool, **said: Any) -> Any:
        """As `from_pretrained` says; settings that are said, and not None, override those of the file."""
        make: Callable[..., Any] = cls
        config = read_config(Path(folder), cls.kind, cls.family)
        config = replace(config, **{name: value for name, value in said.items() if value is not None})
        return load(lambda: make(config, head), Path(folder), cls.family, head, new_head)

    def save_pretrained(self: Any, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `from_pretrained` and transformers read."""
        write(folder, self.family, self.config, self.state_dict(), self.head_name)


def read_config(folder: Path, kind: type[Config], family: Family) -> Config:
    """The configuration in a folder's config.json.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or describes what is not computed here; the message names both.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a folder that transformers' save_pretrained wrote")
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stated, dict):
            raise ValueError(f"it holds {stated!r} where a table of settings is expected")
        for key, supported in {"model_type": (family.model_type, family.own_type), **family.supported}.items():
            if stated.get(key, supported[0]) not in supported:
                raise ValueError(f"{key} is {stated[key]!r}; {kind.__name__} describes {supported[0]!r} only")
        values = {name: stated[name] for name in (each.name for each in fields(kind)) if name in stated}
        if "num_labels" not in values and isinstance(stated.get("id2label"), dict):
            values["num_labels"] = len(stated["id2label"])
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; correct the file, or remove it if it belongs to other weights") from error


def load(build: Callable[[], Model], folder: Path, family: Family, head: str | None, new_head: bool = False) -> Model:
    """What `build` builds, with the weights in a folder; a head that the folder lacks is new, if `new_head` says so.

    Raises:
        FileNotFoundError, ValueError: As `read_state` does.
    """
    with torch.device("meta"):  # no time is spent on an initialisation that is about to be replaced
        model = build()
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = read_state(folder, family, wanted, head, new_head)
    if state.keys() != wanted.keys():
        model = build()
    model.load_state_dict(state, assign=True, strict=state.keys() == wanted.keys())
    return model


def read_state(
    folder: Path, family: Family, wanted: Mapping[str, tuple[int, ...]], head: str | None, new_head: bool = False
) -> dict[str, Tensor]:
    """The tensors of a model whose names and shapes are `wanted`, in float32 on the CPU.

    Every name, shape and dtype is checked before the first tensor is read. Tensors of other heads are left.

    Args:
        new_head: Give the body's tensors alone where the folder has none of the head's.

    Raises:
        FileNotFoundError: The folder has no weights.
        ValueError: They are damaged, or not this model's; the message names the file, the tensor and the fix.
    """
    files = _files(folder)
    where = {name.removeprefix(family.prefix): (path, name) for path, names in files.items() for name in names}
    names = {name: family.stored_name(name, head) for name in wanted}
    names = {name: key if key in where else family.otherwise.get(key, key) for name, key in names.items()}
    if new_head and not any(names[name] in where for name in wanted if name.startswith("head.")):
        names = {name: stored for name, stored in names.items() if not name.startswith("head.")}
    _require_names(folder, family, where, names)
    state = {}
    for path in files:
        here = {name: where[stored][1] for name, stored in names.items() if where[stored][0] == path}
        with opened(path) as file:
            _require_shapes(path, file, here, wanted)
            state |= {name: owned(file.get_tensor(key)) for name, key in here.items()}
            _require_repeats(path, file, where, family)
    return state


def write(
    folder: str | Path,
    family: Family,
    config: EncoderConfig | ReformerConfig,
    state: Mapping[str, Tensor],
    head: str | None,
) -> None:
    """Writes both files of a model as transformers reads them; each appears whole or not at all.

    What transformers would compute otherwise bears a type that it does not know.

    Raises:
        OSError: There is no room or no permission; what the folder held before is untouched.
    """
    folder = Path(folder)
    alone = head in (None, "pooler")
    tensors = {}
    for name, tensor in state.items():
        before = "" if alone or name.startswith("head.") else family.prefix
        tensors[before + family.stored_name(name, head)] = tensor.detach().cpu().contiguous()
    name, model_type = family.heads[head or "pooler"][0], family.model_type
    if not family.theirs(config):
        name, model_type = f"Gossamer{name}", family.own_type
    settings = {"architectures": [name], "model_type": model_type}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / FILE) as new_config, new_file(folder / WEIGHTS) as new_weights:
            new_config.write_text(json.dumps({**settings, **_plain(config)}, indent=2) + "\n", encoding="utf-8")
            save_file(tensors, new_weights, metadata={"format": "pt"})
            new_weights.chmod(new_config.stat().st_mode)  # safetensors shuts everyone else out
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{folder}: the model was not saved ({error}) and what the folder held is untouched; "
            "free some space or save elsewhere"
        ) from error


def _plain(config: EncoderConfig | ReformerConfig) -> dict[str, Any]:
    """The settings as transformers spells them: it counts labels by their names."""
    settings = config.to_dict()
    labels = settings.pop("num_labels")
    return {**settings, "id2label": {str(label): f"LABEL_{label}" for label in range(labels)}}


def _files(folder: Path) -> dict[Path, list[str]]:
    """The folder's safetensors files, and the names of the tensors in each."""
    if (folder / INDEX).is_file():
        paths = [folder / name for name in sorted(set(_index(folder / INDEX).values()))]
    else:
        paths = [folder / WEIGHTS]
    for path in paths:
        if not path.is_file():
            pickled = (folder / "pytorch_model.bin").is_file()
            fix = "convert pytorch_model.bin, a pickle that is never opened, by transformers' save_pretrained"
            raise FileNotFoundError(f"{path}: no such file; {fix if pickled else 'fetch the whole folder'}")
    found = {}
    for path in paths:
        with opened(path) as file:
            found[path] = list(file.keys())
    return found


def _index(path: Path) -> dict[str, str]:
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if any(Path(name).name != name for name in places.values()):
            raise ValueError("it leads out of its folder")
        return places
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: no index of shards ({error!r}); fetch it again") from error


def _require_names(folder: Path, family: Family, where: Mapping[str, Any], names: Mapping[str, str]) -> None:
    wanted = set(names.values())
    faults = [f"{name} is missing" for name in wanted - where.keys()]
    faults += [
        f"{name} is no part of a {family.model_type}" for name in where.keys() - wanted if not family.belongs(name)
    ]
    if faults:
        raise ValueError(
            f"{folder}: {_shown(faults)}. Give the weights with the {FILE} that was saved with them, "
            "a head that they have, or new_head=True"
        )


def _require_shapes(path: Path, file: Any, here: Mapping[str, str], wanted: Mapping[str, tuple[int, ...]]) -> None:
    faults = []
    for name, key in here.items():
        found = file.get_slice(key)
        require_floats(path, key, found.get_dtype())
        if tuple(found.get_shape()) != wanted[name]:
            faults.append(f"{key} has shape {found.get_shape()} where {list(wanted[name])} is expected")
    if faults:
        raise ValueError(f"{path}: {_shown(faults)}. Give the weights with the {FILE} that was saved with them")


def _require_repeats(path: Path, file: Any, where: Mapping[str, tuple[Path, str]], family: Family) -> None:
    """A tensor that a file holds a second time holds the same numbers."""
    for again, first in family.repeated.items():
        if again in where and first in where and where[again][0] == path:
            with opened(where[first][0]) as other:
                same = torch.equal(file.get_tensor(where[again][1]), other.get_tensor(where[first][1]))
            if not same:
                raise ValueError(f"{path}: {again} differs from {first}; they are one here: tie them and save again")


def _shown(faults: list[str]) -> str:
    return "; ".join(sorted(faults)[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
