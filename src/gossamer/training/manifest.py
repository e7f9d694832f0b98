"""What the files of a folder were when they were written: the size and SHA-256 of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 2

Fingerprint = dict[str, Any]


def fingerprint(file: Path) -> Fingerprint:
    """The file's size in bytes and its SHA-256."""
    with open(file, "rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def write_manifest(folder: Path, known: Mapping[str, Fingerprint]) -> None:
    """Write the folder's manifest, over all its files; the fingerprints in `known` are not taken again."""
    files = {path.name: known.get(path.name) or fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2), encoding="utf-8")


def damage(folder: str | Path) -> str | None:
    """What is wrong with a folder, or None if every file is as it was written."""
    folder = Path(folder)
    try:
        stated = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if stated.get("format") != FORMAT:
            return (
                "it is of another version of gossamer, which a run cannot be resumed from here; its "
                "model.safetensors can be the run.start_from of a new one"
            )
        with ThreadPoolExecutor() as pool:
            faults = pool.map(lambda file: _fault(folder, *file), stated["files"].items())
            return next(filter(None, faults), None)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"


def _fault(folder: Path, name: str, written: Fingerprint) -> str | None:
    if Path(name).name != name:
        return f"the manifest names {name!r}, which is no plain file name"
    size = (folder / name).stat().st_size
    if size != written["bytes"]:
        return f"{name} has {size} bytes where {written['bytes']} were written"
    if fingerprint(folder / name) != written:
        return f"{name} is not what was written (its SHA-256 differs)"
    return None
