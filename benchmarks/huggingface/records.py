"""What the sections found, as files hold it: races of contenders, and the text without end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from gossamer.bench import Measurement, Results
from gossamer.machine import Machine

from .models import CacheBytes

ENDLESS = "endless"


@dataclass(frozen=True)
class Race:
    """One job by everyone, and what each one's cache held."""

    results: Results
    held: CacheBytes
    transformers: str

    @property
    def case(self) -> str:
        """The job."""
        return self.results.cases[0]

    def at(self, contender: str, length: int) -> Measurement | None:
        """One contender at one length; None if it was not measured there."""
        return self.results.measurement(self.case, contender, length)

    def record(self) -> dict[str, Any]:
        """As plain values for JSON."""
        held = [{"contender": who, "length": n, "bytes": size} for (who, n), size in self.held.items()]
        return self.results.record() | {"transformers": self.transformers, "cache": held}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Race:
        """The race that `record` was made of."""
        held = {(row["contender"], row["length"]): row["bytes"] for row in record["cache"]}
        return cls(Results.from_record(record), held, record["transformers"])


@dataclass(frozen=True)
class Endless:
    """What a token took, and what was held besides the weights, at the end of each block."""

    machine: Machine
    date: str
    transformers: str
    prompt: int
    """Tokens before the first written one."""
    size: int
    """Tokens of a block; one more block came first, and is not told."""
    seconds: tuple[float, ...] = ()
    held: tuple[int, ...] = ()
    fault: str | None = None
    """Why nothing was measured."""

    @property
    def growth(self) -> float | None:
        """What a token takes in the last block over what it takes in the first."""
        return self.seconds[-1] / self.seconds[0] if len(self.seconds) > 1 else None

    @property
    def spread(self) -> float | None:
        """The most that was held over the least."""
        return max(self.held) / min(self.held) if self.held and min(self.held) else None

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Endless:
        """The one that `record` was made of."""
        made = {"machine": Machine(**record["machine"])}
        return cls(**record | made | {name: tuple(record[name]) for name in ("seconds", "held")})


@dataclass
class Report:
    """Everything that is known so far, from this call or an earlier one."""

    races: dict[str, Race] = field(default_factory=dict)
    endless: Endless | None = None

    def sections(self) -> dict[str, Any]:
        """Each section as plain values for JSON."""
        told = {name: race.record() for name, race in self.races.items()}
        return told | ({ENDLESS: asdict(self.endless)} if self.endless else {})

    @classmethod
    def from_sections(cls, sections: dict[str, Any]) -> Report:
        """The report that `sections` were made of."""
        races = {name: Race.from_record(record) for name, record in sections.items() if name != ENDLESS}
        return cls(races, Endless.from_record(sections[ENDLESS]) if ENDLESS in sections else None)
