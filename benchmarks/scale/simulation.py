"""What more processes would take, by arithmetic on figures of those that were there. Nothing here was measured.

A ring of links of one kind is assumed. To a neighbour a parcel takes a latency and its bytes over the link's rate. A
collective over n processes takes n - 1 such hops of 1/n of the bytes each. What is exchanged is hidden behind the
computation that is there to hide it: all but the part that is longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .figures import Figure

PROCESSES = (4, 8, 64, 512)
WEIGHTS, LAYERS = 0.7e9, 12
"""Of the model whose training was measured."""


@dataclass(frozen=True)
class Link:
    """One link: seconds of the smallest parcel, and bytes a second of the largest."""

    latency: float
    rate: float

    @classmethod
    def of(cls, figures: Sequence[Figure]) -> Link | None:
        """As measured to a neighbour; None where nobody had one."""
        found = sorted((each.tokens, each.seconds) for each in figures if each.case == "to a neighbour")
        if len(found) < 2:
            return None
        (_, latency), (nbytes, seconds) = found[0], found[-1]
        return cls(latency, nbytes / max(seconds - latency, 1e-9))

    def parcel(self, nbytes: float) -> float:
        """Seconds of one parcel."""
        return self.latency + nbytes / self.rate

    def collective(self, nbytes: float, processes: int) -> float:
        """Seconds of an all-gather or reduce-scatter in which `nbytes` are whole in the end, or were."""
        return (processes - 1) * self.parcel(nbytes / processes)


@dataclass(frozen=True)
class Prediction:
    """A case with more processes than there were."""

    case: str
    processes: int
    tokens: int
    seconds: float
    exposed: float
    efficiency: float


def predictions(figures: Sequence[Figure]) -> Iterator[Prediction]:
    """Of each case whose parts were measured, for more processes."""
    link = Link.of([each for each in figures if each.section == "links"])
    if link is None:
        return
    for each in figures:
        if (
            each.section == "context"
            and each.processes > 1
            and each.alone
            and "backward" in each.case
            and each.case.startswith("window")
        ):
            yield from _of_windows(each, link)
        if each.section == "training" and each.case.startswith("FSDP2") and each.processes == 1:
            yield from _of_fsdp(each, link)


def _of_windows(figure: Figure, link: Link) -> Iterator[Prediction]:
    """A window, and sinks, send each process as much whatever the number of processes; its own tokens hide it."""
    alone, waited = figure.alone or 0.0, figure.exposed or 0.0
    edges = max(figure.seconds - alone - waited, 0.0)  # computed over what came, and joined
    exposed = max(link.parcel(figure.nbytes or 0) - alone, waited)
    for processes in PROCESSES:
        seconds = alone + edges + exposed
        tokens = figure.tokens // figure.processes * processes
        yield Prediction(figure.case, processes, tokens, seconds, exposed, alone / seconds)


def _of_fsdp(figure: Figure, link: Link) -> Iterator[Prediction]:
    """Weights are gathered twice in 16 bits, gradients scattered in 32; all but the first layer's is hidden."""
    weights, layers = WEIGHTS, LAYERS
    for processes in PROCESSES:
        gathered, scattered = (link.collective(size * weights / layers, processes) for size in (2, 4))
        exposed = gathered + max(layers * (2 * gathered + scattered) - figure.seconds, 0.0)
        seconds = figure.seconds + exposed
        yield Prediction(figure.case, processes, figure.tokens * processes, seconds, exposed, figure.seconds / seconds)
