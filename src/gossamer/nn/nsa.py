"""`NSAAttention`: compressed, selected and near keys, joined by gates (Yuan et al. 2025, arXiv 2502.11089)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..attention import attend
from ..config.rotary import HALVES, RotaryConfig
from ..indexed import attend_indexed
from ..patterns import Causal, Window
from ..runs import attend_runs
from ..selectors.nsa import NSA
from .heads import merged, require_groups, require_sizes, split
from .positions import rotated
from .recent_cache import RecentCache
from .whole_cache import WholeCache


class BlockCompressor(nn.Module):
    """One vector for each overlapping block of `length` tokens, by a small network that knows where in it each stands.

    The paper says "a learnable MLP with intra-block position encoding" and no more. Here a learned vector is added for
    each place, the block's vectors are laid side by side, and two layers with a GELU between bring them to the width of
    one. All heads share the network.

    >>> BlockCompressor(32, 16, 8)(torch.zeros(1, 2, 70, 8)).shape
    torch.Size([1, 2, 3, 8])
    """

    def __init__(self, length: int, stride: int, width: int):
        super().__init__()
        self.length, self.stride = length, stride
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.mix = nn.Sequential(nn.Linear(length * width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "B G N D"]) -> Float[Tensor, "B G C D"]:
        """The vectors of the blocks that are whole."""
        if x.shape[2] < self.length:
            return x[:, :, :0]
        blocks = x.unfold(2, self.length, self.stride).mT  # [B, G, C, length, D]
        return self.mix((blocks + self.place.to(x.dtype)).flatten(-2))


class NSACache:
    """What `NSAAttention` holds: every token's keys and values to select from, the compressed ones, and of the others
    those that a later window or a block that is not whole yet will need.

    >>> cache, layer = NSACache(), NSAAttention(64, 4, 2, NSA(length=8, stride=4, block=8, count=4, window=16))
    >>> x = torch.randn(1, 50, 64)
    >>> in_pieces = torch.cat([layer(piece, cache=cache) for piece in x.split(9, dim=1)], dim=1)
    >>> torch.allclose(in_pieces, layer(x), atol=1e-5)
    True
    """

    def __init__(self) -> None:
        self.selected, self.compressed = WholeCache(), WholeCache()
        self.window, self.tail = RecentCache(), RecentCache()

    @property
    def seen(self) -> int:
        """Tokens of a sequence so far."""
        return self.selected.seen

    @property
    def nbytes(self) -> int:
        """Memory that is taken."""
        return sum(part.nbytes for part in (self.selected, self.compressed, self.window, self.tail))

    def pick(self, order: Tensor) -> None:
        """Goes on with the sequences `order` [B'] of those held, as beam search asks."""
        for part in (self.selected, self.compressed, self.window, self.tail):
            part.pick(order)


class NSAAttention(nn.Module):
    """Causal self-attention to compressed blocks, to selected blocks and to a window, the three weighted by gates.

    Each branch has keys and values of its own, and each head its own gate for each branch, a sigmoid of the input. What
    the compression branch looks at decides which blocks are selected, for all query heads of a key head together; no
    gradient passes through that choice. A query that sees no compressed key yet gets zeros from that branch.

    Where the paper is silent: a compressed block is seen from its last token on; compressed keys turn by the position
    of their block's first token; gates are one linear layer with bias.

    >>> layer = NSAAttention(64, 4, 2, NSA(length=8, stride=4, block=8, count=4, window=16))
    >>> layer(torch.zeros(1, 100, 64)).shape
    torch.Size([1, 100, 64])

    Args:
        nsa: Sizes of blocks and window; those of the paper by default.
        head_width: Of queries and keys, 192 in the paper; width / heads by default.
        value_width: Of values, 128 in the paper; that of keys by default.
        rotary: How positions turn queries and keys, or None.

    Raises:
        ValueError: A size is no positive integer, or sizes do not divide one another.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int,
        nsa: NSA | None = None,
        *,
        head_width: int | None = None,
        value_width: int | None = None,
        rotary: RotaryConfig | None = HALVES,
    ):
        super().__init__()
        require_sizes("NSAAttention", {"width": width, "heads": heads, "key_heads": key_heads})
        require_sizes("NSAAttention", {"head_width": head_width or 1, "value_width": value_width or 1})
        require_groups("NSAAttention", heads, key_heads)
        if head_width is None and width % heads:
            raise ValueError(f"NSAAttention: width is {width}; give a multiple of the {heads} heads, or head_width")
        head_width = head_width or width // heads
        value_width = value_width or head_width
        self.heads, self.key_heads, self.nsa, self.rotary = heads, key_heads, nsa or NSA(), rotary
        self.q_proj = nn.Linear(width, heads * head_width, bias=False)
        self.keys = nn.ModuleDict({name: nn.Linear(width, key_heads * head_width, bias=False) for name in BRANCHES})
        self.values = nn.ModuleDict({name: nn.Linear(width, key_heads * value_width, bias=False) for name in BRANCHES})
        self.compress_keys = BlockCompressor(self.nsa.length, self.nsa.stride, head_width)
        self.compress_values = BlockCompressor(self.nsa.length, self.nsa.stride, value_width)
        self.gate = nn.Linear(width, len(BRANCHES) * heads)
        self.o_proj = nn.Linear(heads * value_width, width, bias=False)

    def forward(self, x: Float[Tensor, "B N E"], *, cache: NSACache | None = None) -> Float[Tensor, "B N E"]:
        """Attention of `x` to itself and to the tokens of earlier calls with the same `cache`."""
        past = 0 if cache is None else cache.seen
        at = torch.arange(past, past + x.shape[1], device=x.device)
        q = self._turned(split(self.q_proj(x), self.heads), at)
        few_k, few_v = self._compressed(x, cache)
        far_k, far_v = self._key_values("selected", x, at)
        near_k, near_v = self._key_values("window", x, at)
        if cache is not None:
            far_k, far_v = cache.selected.extend([far_k, far_v])
            near_k, near_v = cache.window.extend([near_k, near_v], self.nsa.window - 1)
        stop = self.nsa.seen(at).to(torch.int32)[None]
        few, lse = attend_runs(q, few_k, few_v, torch.zeros_like(stop), stop, return_lse=True)
        far = attend_indexed(q, far_k, far_v, self.nsa.select(q, few_k, lse, far_k.shape[2]))
        near = attend(q, near_k, near_v, Causal() & Window(self.nsa.window))
        gates = (
            self.gate(x).sigmoid().unflatten(-1, (len(BRANCHES), -1)).movedim(1, 3)[..., None]
        )  # [B, branch, H, N, 1]
        of_few, of_far, of_near = gates.unbind(1)
        return self.o_proj(merged(few * of_few + far * of_far + near * of_near))

    def _turned(self, x: Tensor, at: Int64[Tensor, " N"]) -> Tensor:
        return x if self.rotary is None else rotated(x, at, self.rotary)

    def _key_values(self, branch: str, x: Tensor, at: Int64[Tensor, " N"]) -> tuple[Tensor, Tensor]:
        k, v = split(self.keys[branch](x), self.key_heads), split(self.values[branch](x), self.key_heads)
        return self._turned(k, at), v

    def _compressed(self, x: Tensor, cache: NSACache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of all compressed blocks so far."""
        k, v = (split(made["compressed"](x), self.key_heads) for made in (self.keys, self.values))
        nsa, before = self.nsa, 0
        if cache is not None:
            before, after = cache.compressed.seen, cache.seen + x.shape[1]
            k, v = cache.tail.extend([k, v], after - nsa.compressed(after) * nsa.stride)
        k, v = self.compress_keys(k), self.compress_values(v)
        k = self._turned(k, nsa.stride * torch.arange(before, before + k.shape[2], device=x.device))
        if cache is not None:
            k, v = cache.compressed.extend([k, v])
        return k, v


BRANCHES = "compressed", "selected", "window"
