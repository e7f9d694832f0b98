"""What a task found, as JSON and as a page: always whole, however far a run has come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gossamer.atomic import write_file
from gossamer.machine import Machine, this_machine


def write(folder: Path, name: str, record: dict[str, Any], page: Sequence[str]) -> str:
    """Leave `name`.json and `name`.md in the folder; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(page) + "\n"
    write_file(folder / f"{name}.json", f"{json.dumps(record, indent=1)}\n".encode())
    write_file(folder / f"{name}.md", text.encode())
    return text


def machine_of(commit: str | None) -> Machine:
    """This machine; `commit` names the code where its copy has no history."""
    machine = this_machine()
    return replace(machine, commit=commit or machine.commit)


def where(machine: Machine, date: str) -> str:
    """The machine, the versions and the day."""
    return (
        f"{machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, Gossamer {machine.gossamer}, "
        f"commit {machine.commit or 'not known'}, {date}."
    )


def now() -> str:
    """The time, for a record."""
    return datetime.now(UTC).isoformat(timespec="seconds")
