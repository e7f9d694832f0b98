"""`EntryCompressor`: a run of tokens becomes one vector, by weights that the tokens give (DeepSeek-V4, 2606.19348)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from ..config.rotary import RotaryConfig
from .norms import normalised
from .partial_rotary import turned_last


class EntryCompressor(nn.Module):
    """One entry for each whole run of `rate` tokens: a mean of what they say, weighted for each feature by softmax.

    A token's weight comes from itself and from its place in the run. With `overlap` each token says two things, one to
    the entry of its own run and one to the entry after it; the first entry hears its own run alone. An entry is
    normalised, and its last features are turned by the position of its run's first token.

    >>> EntryCompressor(32, 16, 4, overlap=True, rotary=RotaryConfig(), rotary_width=8)(torch.randn(1, 30, 32)).shape
    torch.Size([1, 7, 16])
    """

    def __init__(
        self,
        width: int,
        entry_width: int,
        rate: int,
        *,
        overlap: bool,
        rotary: RotaryConfig,
        rotary_width: int,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.rate, self.overlap, self.rotary, self.rotary_width = rate, overlap, rotary, rotary_width
        said = entry_width * (1 + overlap)
        self.kv_proj = nn.Linear(width, said, bias=False)
        self.gate_proj = nn.Linear(width, said, bias=False)
        self.position_bias = nn.Parameter(torch.zeros(rate, said))
        self.kv_norm = nn.RMSNorm(entry_width, eps)

    def held(self, tokens: int) -> int:
        """How many of so many tokens the entries to come are made of."""
        whole = tokens // self.rate
        return tokens - self.rate * (whole - 1 if self.overlap and whole else whole)

    def forward(self, x: Float[Tensor, "B N E"], past: int = 0) -> Float[Tensor, "B W D"]:
        """The entries that are whole with these tokens and were not before.

        Args:
            x: Tokens of which the last ones are new: where `past` were there before, those that `held(past)` counts
                stand in front.
            past: Tokens before the new ones.
        """
        made = past // self.rate
        first = past - self.held(past)  # position of the first token of x
        new = (first + x.shape[1]) // self.rate - made
        again = 1 if self.overlap and made else 0  # the run before was an entry, and is heard by the next
        runs = x[:, : self.rate * (new + again)].unflatten(1, (new + again, self.rate))
        value = self.kv_proj(runs)
        gate = self.gate_proj(runs) + self.position_bias.to(value.dtype)
        if self.overlap:
            value, gate = _with_run_before(value, 0.0), _with_run_before(gate, -torch.inf)
        weight = gate.softmax(2, dtype=torch.promote_types(gate.dtype, torch.float32)).to(value.dtype)
        entries = normalised((weight * value).sum(2), self.kv_norm)[:, again:]
        at = self.rate * torch.arange(made, made + new, device=x.device)
        return turned_last(entries[:, None], at, self.rotary, self.rotary_width)[:, 0]


def _with_run_before(x: Tensor, nothing: float) -> Tensor:
    """[B, W, m, 2D] → [B, W, 2m, D]: what the run before says to the next one, then what each says to itself."""
    to_next, to_own = x.chunk(2, dim=-1)
    before = pad(to_next, (0, 0, 0, 0, 1, 0), value=nothing)[:, :-1]
    return torch.cat([before, to_own], 2)
