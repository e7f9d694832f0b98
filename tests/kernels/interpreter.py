"""Triton's interpreter, as the tests need it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch


def interpreted(module: str) -> tuple[Any, str]:
    """(what a script of this folder prints as JSON, what it complains of), run where Triton interprets its kernels."""
    command = [sys.executable, "-m", f"tests.kernels.{module}"]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


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
