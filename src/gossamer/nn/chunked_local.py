"""Local attention in chunks: the layers of the Reformer that do not hash (Kitaev et al. 2020, arXiv 2001.04451)."""

from __future__ import annotations

from jaxtyping import Float, Int32
from torch import Tensor, nn

from ..attention import attend
from ..patterns import BlockWindow, Causal, Pattern, Sinks
from ..patterns.base import require_integer
from .heads import merged, split


class ChunkedLocalAttention(nn.Module):
    """Each chunk of `chunk` tokens attends to itself, to the `before` chunks before it and the `after` ones after it.

    A causal layer sees nothing ahead. One that is not sees its chunks whole, and as Hugging Face's Reformer has it, a
    circle of them: the first chunk's neighbour is the last one, unless the sequence is a single chunk.

    >>> ChunkedLocalAttention(64, 4, chunk=16).pattern(50)
    Causal() & BlockWindow(block=16, reach=1, start=0)

    Raises:
        ValueError: A size is no positive integer, or a causal layer is to look at chunks after its own.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        chunk: int,
        before: int = 1,
        after: int = 0,
        causal: bool = True,
        head_width: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, value, least in (
            ("width", width, 1), ("heads", heads, 1), ("chunk", chunk, 1), ("before", before, 0), ("after", after, 0)
        ):  # fmt: skip
            require_integer(type(self).__name__, name, value, least)
        if causal and after:
            raise ValueError(f"ChunkedLocalAttention: after is {after}, but a causal layer sees nothing ahead; give 0")
        self.heads, self.chunk, self.before, self.after = heads, chunk, before, after
        self.causal, self.dropout = causal, dropout
        inner = heads * (width // heads if head_width is None else head_width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.dense = nn.Linear(inner, width, bias=False)

    def draw(self, x: Float[Tensor, "B N E"]) -> None:
        """Nothing here is left to chance: the layer beside this one in a Reformer draws buckets."""

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        *,
        within: Int32[Tensor, "B 2"] | None = None,
        buckets: Tensor | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Attention of `x` to itself.

        Args:
            within: Where each sequence begins and ends; what lies outside is not seen and comes out as zeros. Chunks
                are counted from position 0, whatever `within` says.
            buckets: None: there are none.

        Raises:
            ValueError: `buckets` is not None, or a circle has fewer chunks than a query is to see.
        """
        if buckets is not None:
            raise ValueError("ChunkedLocalAttention: buckets is a tensor, but nothing is hashed here; give None")
        q, k, v = (split(project(x), self.heads) for project in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, self.pattern(x.shape[1]), dropout=dropout, within=within)
        return self.dense(merged(out))

    def pattern(self, length: int) -> Pattern:
        """Who may see whom. Only the circle of a layer that is not causal depends on the length."""
        if self.causal:
            return Causal() & BlockWindow(self.chunk, self.before)
        count = -(-length // self.chunk)
        seen = BlockWindow(self.chunk, 0)
        if self.before:
            seen |= Causal() & BlockWindow(self.chunk, self.before)
        if self.after:
            seen |= Causal().T & BlockWindow(self.chunk, self.after)
        if count <= 1:
            return seen
        if count <= self.before + self.after:
            raise ValueError(
                f"ChunkedLocalAttention: {length} tokens are {count} chunks, of which a query is to see "
                f"{self.before + self.after + 1}; give at least {(self.before + self.after) * self.chunk + 1} tokens, "
                f"or at most {self.chunk}"
            )
        for chunk in range(self.before):
            seen |= self._run(chunk, chunk + 1).T & self._run(count - self.before + chunk, count)
        for chunk in range(self.after):
            ahead = count - self.after + chunk
            seen |= self._run(ahead, ahead + 1).T & self._run(0, chunk + 1)
        return seen

    def _run(self, first: int, stop: int) -> Pattern:
        """The keys of the chunks `first … stop - 1`."""
        run = Sinks(stop * self.chunk)
        return run & ~Sinks(first * self.chunk) if first else run
