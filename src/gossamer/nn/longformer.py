"""`LongformerAttention`: a window, dilated or not, and global tokens (arXiv 2004.05150)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..attention import attend
from ..patterns import Causal, Dilated, Pattern, PerHead, Window
from ..patterns.base import require_integer
from .few_tokens import Seen, attend_with_few
from .global_tokens import GlobalTokens
from .heads import merged, split
from .plain import is_plain
from .shares import attend_by_few, attend_to_few, shares_for
from .unprojected import attend_unprojected

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
        heads = require_integer("LongformerAttention", "heads", heads, least=1)
        if width < 1 or width % heads:
            raise ValueError(f"LongformerAttention: width is {width}; give a multiple of the {heads} heads")
        if require_integer("LongformerAttention", "window", window, least=2) % 2:
            raise ValueError(f"LongformerAttention: window is {window}; give an even number, half of it on each side")
        self.width, self.heads, self.causal, self.dropout = width, heads, causal, dropout
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
            x: Finite everywhere, in padding too: what has the weight 0 is multiplied with it.
            within: Sequence b is positions `within[b, 0]` ... `within[b, 1] - 1` alone (int32); the rest is padding,
                which nobody sees, and which attends to nothing.
            chosen: The global tokens, all of them inside their sequence.
        """
        if chosen is not None and (len(chosen.counts), chosen.length) != x.shape[:2]:
            raise ValueError(
                f"LongformerAttention: chosen is of {len(chosen.counts)} rows of {chosen.length} tokens, but x is "
                f"{list(x.shape)}; give the global tokens of this very batch"
            )
        if chosen is not None and chosen.index.device != x.device:
            raise ValueError(
                f"LongformerAttention: chosen is on {chosen.index.device}, but x is on {x.device}; "
                f"give GlobalTokens.of(mask.to(x.device))"
            )
        q, k, v = (split(project(x), self.heads) for project in (self.query, self.key, self.value))
        if chosen is None or not chosen.most:
            return self.output(merged(attend(q, k, v, self.pattern, dropout=self._dropped, within=within)))
        rows = self._rows(x, chosen, within)
        if self._are_few(chosen) or self._dropped or (self.causal and max(self.dilation) > 1):
            outside = chosen.outside(self.keys_on_a_side, self._steps, self.causal)
            seen = Seen(self.pattern, outside, within)
            rows = chosen.chosen_of(rows)
            return self.output(attend_with_few(q, k, v, chosen, seen, rows=rows, dropout=self._dropped))
        local = attend(q, k, v, self.pattern, within=within, return_lse=True)
        # The chosen rows are projected a second time, which is cheaper than gathering whole keys and their gradients.
        few_keys, few_values = (split(project(chosen.rows_of(x)), self.heads) for project in (self.key, self.value))
        groups = [self._beyond(q, few_keys, few_values, chosen, *group) for group in self._groups()]
        mixed = merged(_joined(local, _side_by_side(groups), within))
        return self.output(chosen.put(rows.flatten(2), mixed))

    def _are_few(self, chosen: GlobalTokens) -> bool:
        """Whether products of all heads of them with a sequence cost at most half of what a projection costs."""
        return 2 * self.heads * chosen.most <= self.width

    def _beyond(
        self, q: Tensor, k: Tensor, v: Tensor, chosen: GlobalTokens, first: int, last: int, step: int
    ) -> Attended:
        """Heads `first` ... `last - 1` of every query to the chosen keys outside its window."""
        q, k, v, reach = q[:, first:last], k[:, first:last], v[:, first:last], self.keys_on_a_side * step
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

    def _rows(self, x: Tensor, chosen: GlobalTokens, within: Int[Tensor, "B 2"] | None) -> Float[Tensor, "B m H D"]:
        """What the chosen tokens attend to: their whole sequence, or what of it is past."""
        projections = self.query_global, self.key_global, self.value_global
        if self._are_few(chosen) and is_plain(self.key_global) and is_plain(self.value_global):
            seen = self._seen(chosen, within)
            return attend_unprojected(x, chosen.index, projections, self.heads, seen=seen, dropout=self._dropped)
        inputs = chosen.rows_of(x), x, x
        q, k, v = (split(project(y), self.heads) for project, y in zip(projections, inputs, strict=True))
        if self._dropped:
            seen = self._seen(chosen, within)
            seen = None if seen is None else seen[:, None]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=self._dropped)
        else:
            out = attend_by_few(q, k, v, *self._ends(chosen, within), shares=shares_for(k, chosen.most))
        return out.transpose(1, 2)

    def _ends(
        self, chosen: GlobalTokens, within: Int[Tensor, "B 2"] | None
    ) -> tuple[Int[Tensor, "B m"], Int[Tensor, "B m"]]:
        """The first position that each chosen token sees, and one more than the last."""
        start = torch.zeros_like(chosen.index, dtype=torch.int32)
        stop = start + chosen.length
        if within is not None:
            start, stop = start + within[:, :1], start + within[:, 1:]
        if self.causal:
            stop = torch.where(chosen.real, chosen.index.int() + 1, stop)
        return start, stop

    def _seen(self, chosen: GlobalTokens, within: Int[Tensor, "B 2"] | None) -> Bool[Tensor, "B m N"] | None:
        """Which positions lie between these ends, or None for all; an entry that was not chosen sees them all."""
        if within is None and not self.causal:
            return None
        start, stop = self._ends(chosen, within)
        positions = torch.arange(chosen.length, device=start.device)
        return (start[..., None] <= positions) & (positions < stop[..., None]) | ~chosen.real[..., None]

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

    @property
    def _steps(self) -> tuple[int, ...]:
        """The dilation of each head, or the one of all."""
        return self.dilation if len(set(self.dilation)) > 1 else self.dilation[:1]


def _each_head(dilation: int | Sequence[int], heads: int) -> tuple[int, ...]:
    given = tuple(dilation) if isinstance(dilation, Sequence) else (dilation,) * heads
    steps = tuple(require_integer("LongformerAttention", "dilation", step, least=1) for step in given)
    if len(steps) != heads:
        raise ValueError(f"LongformerAttention: dilation has {len(steps)} steps; give one for each of {heads} heads")
    return steps


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
