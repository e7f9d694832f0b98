"""Finds loads and stores that still use registers which a warpgroup gives away.

A warpgroup that ends, or that starts by moving data, lowers its number of registers (USETMAXREG.DEALLOC); another may
take the rest at once. ptxas 12.8 does not wait there for what is in flight. Every path through the machine code is
followed here, and each instruction's control bits tell which scoreboards it sets and waits for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

from tests.kernels.machine_code import listing

LINE = re.compile(
    r"^(?:(\.L_\w+):|\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x\w+ \*/\n\s+/\* 0x(\w+) \*/)", re.MULTILINE
)
"""A label; or an instruction's address, text and upper 64 bits, which hold the control bits."""

ENDS = r"BRA `|BRX|EXIT"
"""What the next instruction never follows."""

NONE = 7
"""What stands for a scoreboard where none is set."""


@dataclass(frozen=True)
class Access:
    """A load or a store in flight."""

    kind: str
    address: str
    highest: int
    """The highest register that it uses."""
    scoreboard: int
    """The one that tells that it has written what it loads, or read what it stores."""


@dataclass(frozen=True)
class Instruction:
    """A line of the disassembler."""

    address: str
    text: str
    control: int

    @cached_property
    def access(self) -> Access | None:
        """The load or store that it starts."""
        found = re.match(r"(?:@\S+ +)?((?:LD|ST|AT|RED)[A-Z]*)(\S*)(.*)", self.text)
        if found is None:
            return None
        kind, modifiers, operands = found.groups()
        wide = 4 if re.search(r"\.(128|4)\b", modifiers) else 2 if re.search(r"\.(64|2)\b", modifiers) else 1
        highest = -1
        for bracket, register, pair in re.findall(r"(\[[^\]]*?)?\bR(\d+)(\.64)?", operands):
            highest = max(highest, int(register) + (1 + bool(pair) if bracket else wide) - 1)
        scoreboard = self.control >> (49 if kind.startswith(("ST", "RED")) else 46) & 7
        return Access(kind, self.address, highest, scoreboard)

    @cached_property
    def kept(self) -> int | None:
        """How many registers a warp has left after it, if it gives any away."""
        found = re.search(r"USETMAXREG\.DEALLOC\S* (0x[0-9a-f]+)", self.text)
        return None if found is None else int(found[1], 16)

    @cached_property
    def awaited(self) -> int:
        """The scoreboards that it waits for, as bits."""
        drained = re.match(r"DEPBAR\.LE SB(\d), 0x0\b", self.text)
        return self.control >> 52 & 63 | (1 << int(drained[1]) if drained else 0)

    def before(self, pending: frozenset[Access]) -> frozenset[Access]:
        """What is in flight still when it is issued."""
        if self.text.startswith("MEMBAR"):
            return frozenset()
        if not self.awaited:
            return pending
        return frozenset(each for each in pending if each.scoreboard == NONE or not self.awaited >> each.scoreboard & 1)

    def after(self, pending: frozenset[Access]) -> frozenset[Access]:
        """What is in flight once it is issued, of what may be reported still.

        Accesses of a kind end in order, so that the scoreboard of one tells of those before it that have none.
        """
        pending = self.before(pending) - self.robbed(pending)
        if self.access is None:
            return pending
        earlier = {each for each in pending if each.kind == self.access.kind and each.scoreboard == NONE}
        return pending - earlier | {
            replace(each, scoreboard=self.access.scoreboard) for each in earlier | {self.access}
        }

    def robbed(self, pending: frozenset[Access]) -> frozenset[Access]:
        """What is in flight and uses a register that it gives away."""
        if self.kept is None:
            return frozenset()
        return frozenset(each for each in self.before(pending) if each.highest >= self.kept)


def read(listing: str) -> tuple[list[Instruction], list[set[int]]]:
    """The instructions, and for each the indices of those that may follow it; a jump by table may lead to any block."""
    code, labels, joins, starts = [], {}, defaultdict(set), set()
    for label, address, text, control in LINE.findall(listing):
        if label:
            labels[label] = len(code)
            starts.add(len(code))
            continue
        code.append(Instruction(address, text, int(control, 16)))
        if joining := re.search(r"BSSY (B\d+), `\((\S+)\)", text):
            joins[joining[1]].add(joining[2])
        if re.match(ENDS, text):
            starts.add(len(code))
    following = []
    for index, each in enumerate(code):
        if re.search(r"\b(CALL|RET|JMP|JMX|BRXU)\b", each.text):
            raise ValueError(f"it is not known where {each.text} at {each.address} leads")
        joined = re.search(r"BSYNC (B\d+)", each.text)
        named = joins[joined[1]] if joined else re.findall(r"\.L_\w+", each.text)
        targets = set(starts) if "BRX" in each.text else {labels[label] for label in named}
        if not re.match(ENDS, each.text):
            targets.add(index + 1)
        following.append(targets - {len(code)})
    return code, following


def given_away(listing: str) -> list[str]:
    """The loads and stores of a kernel that may still use a register when it is given away."""
    code, following = read(listing)
    arriving, todo = {0: frozenset()}, [0]
    while todo:
        index = todo.pop()
        pending = code[index].after(arriving[index])
        for target in following[index]:
            known = arriving.get(target)
            if known is None or not pending <= known:
                arriving[target] = pending | (known or frozenset())
                todo.append(target)
    return [
        f"{access.kind} at {access.address} uses R{access.highest} when {each.address} keeps {each.kept} registers"
        for index, each in enumerate(code)
        if each.kept is not None
        for access in sorted(each.robbed(arriving[index]), key=lambda access: access.address)
    ]


def given_away_in(cubin: bytes) -> tuple[str, ...]:
    """What `given_away` finds in a kernel's machine code."""
    return tuple(given_away(listing(cubin)))
