"""What goes through a model at a time: some sequences, or the documents in them, or this process's part of either."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor

from ..models.gpt2 import IGNORED_TARGET
from ..nn.context import ContextShard
from ..nn.packing import Packing, packed
from ..nn.surroundings import Surroundings
from ..parallel import Shards
from .config import ParallelConfig
from .distributed import World


class Piece(NamedTuple):
    """Tokens with the one after each, and what stands around them: nothing, other documents, or other processes."""

    tokens: Int64[Tensor, "B n"]
    targets: Int64[Tensor, "B n"]
    around: Surroundings | None = None

    @property
    def counted(self) -> int:
        """Targets that are not left out."""
        return int((self.targets != IGNORED_TARGET).sum())

    @property
    def documents(self) -> tuple[int, ...] | None:
        """Lengths of those that lie behind each other in the whole row; None where it is no row of documents."""
        match self.around:
            case Packing():
                return self.around.lengths
            case ContextShard():
                return self.around.documents
        return None

    @property
    def sent(self) -> int:
        """Bytes that attention has sent to other processes so far."""
        return self.around.shards.traffic.nbytes if isinstance(self.around, ContextShard) else 0


def piece_of(
    tokens: Int64[Tensor, "B N"],
    targets: Int64[Tensor, "B N"],
    world: World,
    config: ParallelConfig,
    *,
    end: int | None = None,
) -> Piece:
    """What this process has of its sequences: all of their tokens, or those of its place among those that share them.

    Args:
        end: The token that ends a document, where each is to be read as if it were alone. None: it is not.
    """
    packing = None
    if end is not None:
        tokens, targets, packing = packed(tokens, targets, end)
    if world.context.of == 1:
        return Piece(tokens, targets, packing)
    shards = Shards.even(tokens.shape[1], world.context_group)
    lengths, capacity = (None, None) if packing is None else (packing.lengths, packing.capacity)
    around = ContextShard(shards, exchange=config.exchange, documents=lengths, capacity=capacity)
    own = slice(shards.first, shards.stop)
    return Piece(tokens[:, own], targets[:, own], around)
