"""What still uses registers that are given away is found: in listings, and in a kernel whose stores are not awaited."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from gossamer.kernels.hopper.backend import HOPPER
from gossamer.kernels.problem import Saved, Softmax
from gossamer.patterns import Causal, Strided
from gossamer.plan import plan
from tests.planting import Fault, planted

triton = pytest.importorskip("triton", reason="the kernels need Triton to compile")

from tests.kernels import sm90  # noqa: E402
from tests.kernels.register_release import given_away  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process and compiles nothing", allow_module_level=True)

STORE, LOAD, GIVE = "STG.E desc[UR4][R2.64], R130", "LDS R130, [R2]", "USETMAXREG.DEALLOC.CTAPOOL 0x78"


def line(text: str, *, writes: int = 7, reads: int = 7, waits: int = 0) -> str:
    """As nvdisasm shows an instruction: the scoreboards of its results and operands, and the bits of those awaited."""
    control = writes << 46 | reads << 49 | waits << 52
    return f"        /*0010*/      {text} ;   /* 0x0000000000000000 */\n     /* 0x{control:016x} */\n"


FOUND = {
    "a store": [line(STORE, reads=0), line(GIVE)],
    "a store without a scoreboard": [line(STORE), line(GIVE, waits=63)],
    "a store, and another scoreboard is awaited": [line(STORE, reads=0), line("NOP", waits=2), line(GIVE)],
    "a load that has read its address alone": [line(LOAD, writes=1, reads=0), line("NOP", waits=1), line(GIVE)],
    "a wide store's last register": [line("@P0 STG.E.128 desc[UR4][R2.64], R117", reads=0), line(GIVE)],
    "the second half of an address": [line("@!P0 LDG.E R4, desc[UR4][R119.64+0x20]", writes=0), line(GIVE)],
    "some stores may be left": [line(STORE, reads=0), line("DEPBAR.LE SB0, 0x1"), line(GIVE)],
    "some threads drain": [line(STORE, reads=0), line("@P0 MEMBAR.ALL.CTA"), line(GIVE)],
    "a branch past the drain": [
        line(STORE), line("@P0 BRA `(.L_x_1)"), line("MEMBAR.ALL.CTA"), ".L_x_1:\n", line(GIVE),
    ],
    "a branch back": [
        line("BRA `(.L_x_2)"), ".L_x_1:\n", line(GIVE), line("EXIT"), ".L_x_2:\n", line(STORE), line("BRA `(.L_x_1)"),
    ],
    "a jump by table": [
        line(STORE), line("BRX R4 -0x20"), line("NOP"), line("EXIT"), line(GIVE),
    ],
    "a jump to where a warp's threads meet": [
        line("BSSY B0, `(.L_x_1)"), line(STORE), line("BSYNC B0"), line("EXIT"), ".L_x_1:\n", line(GIVE),
    ],
}  # fmt: skip
SILENT = {
    "a store that is awaited": [line(STORE, reads=3), line("NOP", waits=8), line(GIVE)],
    "a load that is awaited there": [line(LOAD, writes=1, reads=0), line(GIVE, waits=2)],
    "a store before one that is awaited": [line(STORE), line(STORE, reads=0), line(GIVE, waits=1)],
    "registers that are kept": [
        line("STG.E.128 desc[UR4][R2.64], R116"), line("LDSM.16.MT88.4 R116, [R9]"), line(GIVE),
    ],
    "all of a scoreboard": [line(STORE, reads=0), line("DEPBAR.LE SB0, 0x0"), line(GIVE)],
    "a drain": [line(STORE), line("MEMBAR.ALL.CTA"), line(GIVE)],
    "a store on another way": [
        line("@P0 BRA `(.L_x_1)"), line(STORE), line("EXIT"), ".L_x_1:\n", line(GIVE), line("EXIT"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_is_in_flight_is_found(name: str) -> None:
    assert len(given_away("".join([*FOUND[name], line("EXIT")]))) == 1


@pytest.mark.parametrize("name", SILENT)
def test_what_has_ended_is_not(name: str) -> None:
    assert given_away("".join([*SILENT[name], line("EXIT")])) == []


def test_a_path_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match="it is not known where RET"):
        given_away(line("RET.REL.NODEC R4"))


UNSETTLED = Fault(
    "hopper.sweep_backward_keys",
    "        _store(totals[0], dk * scale, place, part, shape, consumer)\n    settle()\n",
    "        _store(totals[0], dk * scale, place, part, shape, consumer)\n",
    "given_away",
)
"""It ends in stores of a whole tile, where that is a part of a sum: they use low registers and high ones."""


def _faults(fault: Fault) -> list[str]:
    q, k, v, out = torch.zeros(4, 1, 1, 1024, 64, dtype=torch.bfloat16)
    saved = Saved(q, k, v, out, torch.zeros(1, 1, 1024), None)
    with planted(fault), sm90.hopper() as kernels:
        HOPPER.backward(saved, out, None, plan(Causal() & Strided(10), 1024, 1024, 1), Softmax(0.125))
    return [fault for kernel in kernels for fault in kernel.faults]


def test_a_kernel_that_does_not_wait_is_found() -> None:
    """In a process of its own, where no kernel has been imported yet."""
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        faults = processes.submit(_faults, UNSETTLED).result()
    assert faults and all(fault.startswith("keys_kernel: STG at ") for fault in faults)
