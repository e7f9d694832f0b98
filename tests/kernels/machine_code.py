"""A kernel's machine code as text, and what ptxas left of its matrix instructions' overlap."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path


@cache
def listing(cubin: bytes) -> str:
    """What nvdisasm says of a kernel, with control bits."""
    import triton

    command = [Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm", "-hex", "-c", "-ndf"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        return subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout


def one_by_one(text: str) -> bool:
    """Whether the machine code waits for each matrix instruction before the next.

    ptxas does that, and says so to nobody who does not ask, where operands and results of the products that are under
    way together do not fit into registers. An instruction that ends a group names the group's barrier; a kernel
    multiplies along 64 columns in four instructions, so that most end none.
    """
    instructions = re.findall(r"HGMMA\.\S+ [^;]*;", text)
    return bool(instructions) and all("gsb0" in instruction for instruction in instructions)
