"""Triton's interpreter, as the tests need it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

HALVES = 2
"""Processes that share a script's checks, as CI has cores."""


def interpreted(module: str) -> tuple[Any, str]:
    """(what a script of this folder prints as JSON, what it complains of), run where Triton interprets its kernels."""
    return _run(module)


def interpreted_in_halves(module: str, names: Collection[str] | None = None) -> tuple[dict[str, str], str]:
    """The same of a script that ends in `tell`: half of its checks, or of those named, in each of two processes."""
    with ThreadPoolExecutor(HALVES) as pool:
        parts = list(pool.map(lambda half: _run(module, str(half), json.dumps(names and list(names))), range(HALVES)))
    return {name: said for found, _ in parts for name, said in found.items()}, "".join(said for _, said in parts)


def asked(request: pytest.FixtureRequest, test: Callable[..., None]) -> list[str]:
    """The names that a test of the file which asks is to run with."""
    here = (item for item in request.session.items if item.path == request.path)
    return [item.callspec.params["name"] for item in here if item.function is test]


def _run(module: str, *arguments: str) -> tuple[Any, str]:
    command = [sys.executable, "-m", f"tests.kernels.{module}", *arguments]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


def tell(checks: Mapping[str, Callable[[], None]]) -> None:
    """Prints what each check of this process's half says, as JSON: of the checks that are asked for, or of all."""
    torch.set_num_threads(1)
    repair_interpreter()
    half, names = map(json.loads, sys.argv[1:])
    mine = [(name, check) for name, check in checks.items() if names is None or name in names][half::HALVES]
    with np.errstate(divide="ignore"):  # log2(0) is the log-sum-exp of a query that sees nothing
        print(json.dumps({name: failure(check) for name, check in mine}))


def failure(check: Callable[[], None]) -> str:
    """What the check says, or nothing where it holds."""
    torch.manual_seed(0)
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return ""


def repair_interpreter() -> None:
    """The interpreter takes a loop's bounds from arrays of one element, which NumPy 2.4 refuses to make an int."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
