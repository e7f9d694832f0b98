"""`ContextShard`: a model's tokens are a part of a sequence whose rest is in other processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..parallel import Shards, attend_by_heads, attend_shards, gathered_before
from ..patterns.base import Pattern
from .packing import Packing

Exchange = Literal["keys", "heads"]


class ContextShard:
    """Where a process's tokens stand in a sequence that several share (context parallelism).

    It is given to a model as its `cache`, with this process's tokens, in every process: the output is what the whole
    sequence gives these tokens. Gradients of keys and values travel back; those of parameters are each process's own
    share, to be added up over the processes.

    `model(tokens[:, shard.length : shard.stop], cache=shard)` with `shard = ContextShard(Shards.even(n, group))`.
    """

    differentiable = True
    padding = None

    def __init__(
        self,
        shards: Shards,
        *,
        exchange: Exchange = "keys",
        documents: Sequence[int] | None = None,
        capacity: int | None = None,
    ):
        """
        Args:
            exchange: "keys": processes send one another the keys that the pattern's plan reads. "heads": tokens for
                heads, for any pattern, where the key heads can be shared out evenly (Ulysses).
            documents: Lengths of the documents that the whole sequence is packed with; none sees another, and
                positions start anew in each. They must reach to its end.
            capacity: Tokens that a document, or the sequence, may have: what an adaptive window is resolved from. By
                default those of the whole sequence.

        Raises:
            ValueError: The exchange is unknown, or the documents' lengths do not sum to the sequence's.
        """
        if exchange not in ("keys", "heads"):
            raise ValueError(f"ContextShard: exchange is {exchange!r}; give 'keys' or 'heads'")
        if documents is not None and sum(documents) != shards.length:
            raise ValueError(
                f"ContextShard: documents sum to {sum(documents)} tokens; give lengths that sum to the {shards.length} "
                f"of the sequence"
            )
        self.shards, self.exchange = shards, exchange
        self.packing = None if documents is None else Packing(documents)
        self.length = shards.first
        self.capacity = shards.length if capacity is None else capacity

    @property
    def documents(self) -> tuple[int, ...] | None:
        """Lengths of the documents that the whole sequence is packed with; None where it is one."""
        return None if self.packing is None else self.packing.lengths

    @property
    def stop(self) -> int:
        """Tokens of the sequence up to the last of this process's."""
        return self.shards.stop

    def positions(self, tokens: int, device: torch.device) -> Int64[Tensor, " N"]:
        """Positions of this process's tokens in the sequence, or each in its own document."""
        self._require(tokens)
        if self.packing is None:
            return torch.arange(self.length, self.stop, device=device)
        return self.packing.positions(self.shards.length, device)[self.length : self.stop]

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G N D"],
        v: Float[Tensor, "B G N D"],
        pattern: Pattern,
        *,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H N D"]:
        """Attention of this process's tokens to the whole sequence, over `pattern`.

        Raises:
            ValueError: There are more or fewer tokens than the shard has, or the heads cannot be shared out.
        """
        self._require(k.shape[2])
        if self.packing is not None:
            pattern = self.packing.within(pattern)
        over = attend_shards if self.exchange == "keys" else attend_by_heads
        return over(q, k, v, pattern, self.shards, dropout=dropout)

    def extend(self, layer: int, new: Sequence[Float[Tensor, "B *_ N _"]]) -> list[Tensor]:
        """What `layer` made of all tokens up to the last of these, in every process: [B, *G, K, D] for each thing.

        Raises:
            ValueError: There are more or fewer tokens than the shard has, or documents, which nobody would keep apart.
        """
        self._require(new[0].shape[-2] if new else 0)
        if self.packing is not None:
            raise ValueError("ContextShard: this layer chooses its keys among all documents; leave documents out")
        return gathered_before(new, self.shards)

    def advance(self, tokens: int) -> None:
        """Nothing moves: the same tokens come again in the next step."""

    def _require(self, tokens: int) -> None:
        if tokens != self.stop - self.length:
            raise ValueError(
                f"ContextShard: {tokens} tokens came; give the {self.stop - self.length} at positions {self.length} to "
                f"{self.stop - 1} of the sequence"
            )
