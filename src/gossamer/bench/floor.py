"""The physical floor: what this machine could do at best, and what a job needs at least."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ceilings:
    """Rates that the machine reaches on the plainest work there is, in each second."""

    operations: float
    """Floating-point operations of a large square matrix product in the benchmark's number format."""
    bytes: float
    """Bytes read and bytes written of a large copy from the device's memory into itself."""


@dataclass(frozen=True)
class Work:
    """The least that a job takes: useful operations, and each input read and each output written once."""

    operations: float
    bytes: float

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds below which no implementation comes on a machine with these ceilings."""
        return max(self.operations / ceilings.operations, self.bytes / ceilings.bytes)
