"""`LongformerAttention`: a window, dilated or not, and global tokens (arXiv 2004.05150)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..attention import attend
from ..patterns import Causal, Dilated, Pattern, PerHead, Window
from ..patterns.base import require_integer
from .global_tokens import GlobalTokens
from .shares import attend_by_few, attend_to_few, shares_for

Attended = tuple[Float[Tensor, "B H Q D"], Float[Tensor, "B H Q"]]


class LongformerAttention(nn.Module):
    """Every token attends to its window and to the chosen tokens at once, and each chosen token to all tokens.

    One softmax goes over the window and the chosen tokens outside it, so nothing is counted twice. Rows of chosen
    tokens have queries, keys and values of their own (`query_global`, `key_global`, `value_global`) and see every
    token of their sequence. With `causal=True` no token sees a later one: windows end at the token, others see the
    chosen tokens before them alone, and a chosen token sees what stands before it.

    Args:
        window: Even and two-sided: `window // 2` keys on each side and the token itself; causal, those before it.
        dilation: Steps between a window's keys, for all heads or for each.
        dropout: Share of attention weights dropped in training.
        bias: Whether queries, keys and values have biases.

    >>> chosen = GlobalTokens.of(torch.arange(12)[None] == 0)
    >>> LongformerAttention(32, 2, window=4)(torch.zeros(1, 12, 32), chosen=chosen).shape
    torch.Size([1, 12, 32])

    Raises:
        ValueError: `window` is odd, the heads do not divide the width, or there is not one dilation a head.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        dilation: int | Sequence[int] = 1,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ):
        super().__init__()
        if width < 1 or width % heads:
            raise ValueError(f"LongformerAttention: width is {width}; give a multiple of the {heads} heads")
        if require_integer("LongformerAttention", "window", window, least=2) % 2:
            raise ValueError(f"LongformerAttention: window is {window}; give an even number, half of it on each side")
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.keys_on_a_side = window // 2
        self.dilation = _each_head(dilation, heads)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.query_global, self.key_global, self.value_global = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.output = nn.Linear(width, width)
        windows = [(self._window(step), last - first) for first, last, step in self._groups()]
        self.pattern: Pattern = windows[0][0] if len(windows) == 1 else PerHead(windows)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        *,
        within: Int[Tensor, "B 2"] | None = None,
        chosen: GlobalTokens | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Attention of `x` to itself.

        Args:
            within: Sequence b is positions `within[b, 0]` ... `within[b, 1] - 1` alone (int32); the rest is padding,
                which nobody sees, and which attends to nothing.
            chosen: The global tokens, all of them inside their sequence.
        """
        if chosen is not None and (len(chosen.counts), chosen.length) != x.shape[:2]:
            raise ValueError(
                f"LongformerAttention: chosen is of {len(chosen.counts)} rows of {chosen.length} tokens, but x is "
                f"{list(x.shape)}; give the global tokens of this very batch"
            )
        q, k, v = (self._split(project(x)) for project in (self.query, self.key, self.value))
        if chosen is None or not chosen.most:
            return self.output(_merged(attend(q, k, v, self.pattern, dropout=self._dropped, within=within)))
        local = attend(q, k, v, self.pattern, dropout=self._dropped, within=within, return_lse=True)
        rows = chosen.rows_of(x)
        # The chosen rows are projected a second time, which is cheaper than gathering whole keys and their gradients.
        few_keys, few_values = self._split(self.key(rows)), self._split(self.value(rows))
        groups = [self._beyond(q, few_keys, few_values, chosen, *group) for group in self._groups()]
        mixed = _merged(_joined(local, _side_by_side(groups), within))
        return self.output(chosen.put(self._rows(x, rows, chosen, within), mixed))

    def _beyond(
        self, q: Tensor, k: Tensor, v: Tensor, chosen: GlobalTokens, first: int, last: int, step: int
    ) -> Attended:
        """Heads `first` ... `last - 1` of every query to the chosen keys outside its window."""
        q, k, v, reach = q[:, first:last], k[:, first:last], v[:, first:last], self.keys_on_a_side * step
        if self._dropped or (self.causal and step > 1):
            away = chosen.distances()
            seen = ((away.abs() > reach) | (away % step != 0)) & chosen.real[:, None]
            seen = seen & (away >= 0) if self.causal else seen
            return _dense(q, k, v, seen[:, None], self._dropped)
        if self.causal:
            stop = chosen.earlier(reach)
            return attend_to_few(q, k, v, torch.zeros_like(stop), stop, shares=shares_for(q, chosen.most))
        entries, start, stop, turn, back = chosen.beyond(reach, step)
        entries = entries[:, None, :, None].expand(-1, last - first, -1, k.shape[3])
        k, v = k.gather(2, entries), v.gather(2, entries)
        shares = shares_for(q, k.shape[2])
        if turn is None:
            return attend_to_few(q, k, v, start, stop, shares=shares)
        out, lse = attend_to_few(q[:, :, turn], k, v, start, stop, shares=shares)
        return out[:, :, back], lse[:, :, back]

    def _rows(
        self, x: Tensor, rows: Tensor, chosen: GlobalTokens, within: Int[Tensor, "B 2"] | None
    ) -> Float[Tensor, "B m E"]:
        """What the chosen tokens attend to: their whole sequence, or what of it is past."""
        q = self._split(self.query_global(rows))
        k, v = self._split(self.key_global(x)), self._split(self.value_global(x))
        start = torch.zeros_like(chosen.index, dtype=torch.int32)  # [B, m]
        stop = start + chosen.length
        if within is not None:
            start, stop = start + within[:, :1], start + within[:, 1:]
        if self.causal:
            stop = torch.where(chosen.real, chosen.index.int() + 1, stop)
        if not self._dropped:
            return _merged(attend_by_few(q, k, v, start, stop, shares=shares_for(k, chosen.most)))
        positions = torch.arange(chosen.length, device=x.device)
        seen = (start[..., None] <= positions) & (positions < stop[..., None])
        return _merged(_dense(q, k, v, seen[:, None], self._dropped)[0])

    @property
    def _dropped(self) -> float:
        return self.dropout if self.training else 0.0

    def _window(self, step: int) -> Pattern:
        size = self.keys_on_a_side + 1
        window = Window(size) if step == 1 else Dilated(size, step)
        return Causal() & window if self.causal else window

    def _groups(self) -> Iterator[tuple[int, int, int]]:
        """(first head, last head + 1, dilation) for each run of heads of one dilation."""
        first = 0
        for step, heads in groupby(self.dilation):
            last = first + len(list(heads))
            yield first, last, step
            first = last

    def _split(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B H N D"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _each_head(dilation: int | Sequence[int], heads: int) -> tuple[int, ...]:
    given = tuple(dilation) if isinstance(dilation, Sequence) else (dilation,) * heads
    steps = tuple(require_integer("LongformerAttention", "dilation", step, least=1) for step in given)
    if len(steps) != heads:
        raise ValueError(f"LongformerAttention: dilation has {len(steps)} steps; give one for each of {heads} heads")
    return steps


def _merged(out: Float[Tensor, "B H N D"]) -> Float[Tensor, "B N E"]:
    return out.transpose(1, 2).flatten(2)


def _side_by_side(groups: list[Attended]) -> Attended:
    """The heads of all groups."""
    if len(groups) == 1:
        return groups[0]
    outs, lses = zip(*groups, strict=True)
    return torch.cat(outs, 1), torch.cat(lses, 1)


def _joined(local: Attended, far: Attended, within: Int[Tensor, "B 2"] | None) -> Float[Tensor, "B H N D"]:
    """Attention over two sets of keys that share none, from the attention over each.

    Outside the sequences the first is empty, and nothing is taken of the second.
    """
    (out, lse), (other, other_lse) = local, far
    if within is not None:
        positions = torch.arange(out.shape[2], device=out.device)
        padding = ((positions < within[:, :1]) | (positions >= within[:, 1:]))[:, None]  # [B, 1, N]
        lse, other_lse = lse.masked_fill(padding, 0.0), other_lse.masked_fill(padding, -torch.inf)
    share = torch.sigmoid(other_lse - lse)  # a token is in its own window, so lse is finite
    return torch.lerp(out, other, share[..., None].to(out.dtype))


def _dense(q: Tensor, k: Tensor, v: Tensor, seen: Bool[Tensor, "B 1 Q K"], dropout: float) -> Attended:
    """Plain attention and its log-sum-exp, with dropout: for few queries, or few keys."""
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    empty = ~seen.any(-1)  # [B, 1, Q]
    scores = scores.masked_fill(~seen, -torch.inf).masked_fill(empty[..., None], 0.0)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().masked_fill(empty[..., None], 0.0)
    weights = nn.functional.dropout(weights, dropout)
    return weights.to(v.dtype) @ v, lse.masked_fill(empty, -torch.inf)
