"""What a benchmark leaves in a folder: its figures with their machines, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from gossamer.atomic import write_file
from gossamer.machine import Machine

Figure = TypeVar("Figure")

Machines = dict[str, tuple[Machine, str]]
"""The machine and the date of each section."""


def earlier(path: Path, figure: type[Figure]) -> tuple[list[Figure], Machines]:
    """The figures that earlier calls have left in a JSON file, and their machines."""
    if not path.is_file():
        return [], {}
    record = json.loads(path.read_text(encoding="utf-8"))
    machines = {name: (Machine(**machine), date) for name, (machine, date) in record["machines"].items()}
    return [figure(**each) for each in record["figures"]], machines


def leave(path: Path, figures: Sequence[Any], machines: Machines, what_follows: Mapping[str, Sequence[Any]]) -> None:
    """Writes figures, machines and what follows from them to a JSON file; its folder is made if need be."""
    record = {
        "figures": [asdict(each) for each in figures],
        "machines": {name: (asdict(machine), date) for name, (machine, date) in machines.items()},
    } | {name: [asdict(each) for each in some] for name, some in what_follows.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, f"{json.dumps(record, indent=1)}\n".encode())
