"""What each kernel asks of a multiprocessor, as data: buffers in shared memory, registers of its warps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from triton.experimental.gluon import language as gl

ROWS = 64
SHARED_MEMORY = 227 * 1024
CONSUMER_REGISTERS = {2: 240, 3: 160}
"""Registers of a thread by the number of consumer warpgroups; a producer's threads have the fewest there are."""

FEW = 16
"""Rows that a matrix instruction takes at least on the side that it sums over."""

PRODUCER_REGISTERS = 24
ENTRY_REGISTERS = {2: 168, 3: 128}
"""All warps enter with equal shares of a multiprocessor's registers; then each takes what is written above."""


@dataclass(frozen=True)
class Team:
    """The consumer warpgroups of a program, each with a tile of 64 rows, who share every tile that is brought in."""

    consumers: int
    by_heads: bool = False
    """Whether they take the same rows of as many heads that share a key head, not neighbouring rows of one."""

    @property
    def rows(self) -> int:
        """Rows of one head that the team takes together."""
        return ROWS if self.by_heads else ROWS * self.consumers

    @property
    def heads_together(self) -> int:
        """How many heads the team works on at a time."""
        return self.consumers if self.by_heads else 1

    @property
    def warps(self) -> tuple[int, ...]:
        """Warps of every warpgroup but the first, the producer's last."""
        return (4,) * (self.consumers - 1) + (1,)

    @property
    def registers(self) -> tuple[int, ...]:
        """A thread's registers in the same warpgroups."""
        return (CONSUMER_REGISTERS[self.consumers],) * (self.consumers - 1) + (PRODUCER_REGISTERS,)


def team_of(width: int, value_width: int, repeats: int | None = None) -> Team:
    """The team for tiles of these widths: narrow ones leave registers for a third consumer.

    It works on several heads together where `repeats` heads that share a key head divide among it.
    """
    consumers = 3 if max(width, value_width) <= 64 else 2
    return Team(consumers, by_heads=repeats is not None and repeats % consumers == 0)


PAIR_WARPS, PAIR_REGISTERS = gl.constexpr(Team(2).warps), gl.constexpr(Team(2).registers)
"""What the streaming kernels specialise into: two consumers and a producer."""


@dataclass(frozen=True)
class SweepConfig:
    """One compiled kernel over runs of any length."""

    team: Team
    slots: int
    segments: int = 1
    """Runs of keys that join in one softmax, or runs of queries that add to one gradient: one or two."""
    second_rows: int = ROWS
    """Rows of the second run's tiles that a gradient looks at: 16 where it is no longer."""
    depth: int = 1
    """Items whose own tiles may be there at once, where a kernel keeps them in shared memory."""
    in_turn: bool = False
    """Whether all consumers own the same tile, and each takes its turns at what is brought in: a part of the sum."""

    @property
    def rows(self) -> int:
        """Rows of one head that an item takes."""
        return ROWS if self.in_turn else self.team.rows

    @property
    def takers(self) -> int:
        """Consumers who take each tile of the ring."""
        return 1 if self.in_turn else self.team.consumers

    @property
    def step(self) -> int:
        """From a tile that a consumer takes of the ring to the next."""
        return self.team.consumers if self.in_turn else 1

    @property
    def own(self) -> int:
        """Places for tiles that one consumer owns."""
        return self.team.consumers * self.depth


@dataclass(frozen=True)
class BlocksConfig:
    """One compiled kernel over tables of blocks: streams of work, each with a team, a ring and a producer."""

    team: Team
    streams: int
    size: int
    """Edge of a block."""
    slots: int
    """Places in each ring: for blocks of `size` rows in kernels that own queries, for tiles of 64 in those of keys."""
    own: int = 0
    """Places of a stream for tiles that one consumer owns through an item."""
    copies: bool = False
    """Whether the rows are copies, whose numbers do not say whether they belong to their sequence."""

    @property
    def takers(self) -> int:
        """Consumers who take what a ring brings."""
        return self.team.consumers

    @property
    def parts(self) -> int:
        """Tiles of 64 rows in a block."""
        return self.size // ROWS

    @property
    def own_blocks(self) -> int:
        """Blocks of rows that a team takes together."""
        return self.team.consumers // self.parts

    @property
    def warps(self) -> tuple[int, ...]:
        """Warps of every warpgroup but the first, the producers' last."""
        return (4,) * (self.consumers - 1) + (1,) * self.streams

    @property
    def registers(self) -> tuple[int, ...]:
        """A thread's registers in the same warpgroups."""
        return (CONSUMER_REGISTERS[self.consumers],) * (self.consumers - 1) + (PRODUCER_REGISTERS,) * self.streams

    @property
    def consumers(self) -> int:
        """Consumer warpgroups of a program."""
        return self.streams * self.team.consumers


def blocks_team(size: int, width: int, value_width: int, repeats: int | None = None) -> tuple[Team, int]:
    """(team, streams) for blocks of this size; `repeats` heads that share a key head see the same blocks, if any do."""
    if size > ROWS:
        return Team(size // ROWS), 1
    team = team_of(width, value_width, repeats)
    return (team, 1) if team.by_heads else (Team(1), 2)  # a third would leave too few registers


def rows_seen(count: int) -> int:
    """Rows of a tile that have to be looked at where so many are all that there are."""
    return FEW if count <= FEW else ROWS


def halo_of(width: int) -> int:
    """Tiles that a query tile sees besides its diagonal one."""
    return -(-width // ROWS)


def tile_width(width: int) -> int:
    """Columns of the tile that holds a head of this width: what is beyond the head reads as zero."""
    return 64 if width <= 64 else 128


@dataclass(frozen=True)
class ForwardConfig:
    """One compiled forward. `exact` says that the width is a multiple of a tile."""

    halo: int
    exact: bool
    width: int
    value_width: int
    slots: int
    query_buffers: int
    out_buffers: int
    prefetch: bool
    """Whether the next scores are computed under the softmax of these; where registers allow it."""


@dataclass(frozen=True)
class GradientConfig:
    """One compiled gradient of a streamed band, of queries or of keys; heads are at most 64 wide."""

    halo: int
    exact: bool
    slots: int


FORWARD = {
    64: ({"slots": 8, "query_buffers": 2, "out_buffers": 2, "prefetch": True},),
    128: (
        {"slots": 4, "query_buffers": 2, "out_buffers": 2, "prefetch": False},
        {"slots": 6, "query_buffers": 1, "out_buffers": 1, "prefetch": False},
    ),
}
"""By the wider of the two head widths: the first that lets both consumers go on. Wider bands run faster as sweeps."""

GRADIENT_SLOTS = 8
KEY_BUFFERS = gl.constexpr(4)
"""Tiles of K and V, two for each consumer, in which dK and dV take their place."""


@lru_cache(maxsize=64)
def forward_config(width: int, head_width: int, value_width: int) -> ForwardConfig | None:
    """How the forward streams a band of this width, or None where its ring does not hold it."""
    tiles = {"width": tile_width(head_width), "value_width": tile_width(value_width)}
    for step in FORWARD[max(tiles.values())]:
        config = ForwardConfig(**_band(width), **tiles, **step)
        if _goes_on(config.halo, config.slots):
            return config
    return None


@lru_cache(maxsize=64)
def gradient_config(width: int) -> GradientConfig | None:
    """How the gradients of a band of this width are streamed, or None where a ring does not hold it."""
    config = GradientConfig(**_band(width), slots=GRADIENT_SLOTS)
    return config if _goes_on(config.halo, config.slots) else None


def _goes_on(halo: int, slots: int) -> bool:
    """Whether a consumer can hold all that its tile sees while the other's newest tile comes."""
    return slots >= halo + 2


def _band(width: int) -> dict[str, int | bool]:
    return {"halo": halo_of(width), "exact": width % ROWS == 0}
