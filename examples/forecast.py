"""Forecasts a real-valued series by windowed attention, and says how much better than repeating last week that is.

The series are made here: a daily and a weekly rhythm, a trend and a wandering level, each with numbers of its own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from gossamer import Causal, Dilated, GPT2Config, PerHead, TransformerBlock, Window, attend
from gossamer.nn.self_attention import SelfAttention

DAY, WEEK = 24, 168
RHYTHM = PerHead([(Causal() & Window(2 * DAY), 2), (Causal() & Dilated(22, DAY), 2)])


@dataclass(frozen=True)
class Forecast:
    """Train on drawn series, then forecast new ones."""

    steps: int = 200
    context: int = 512
    """Hours that are known."""
    horizon: int = 48
    """Hours that are forecast, one after the other."""
    width: int = 64
    batch: int = 8
    seed: int = 0


class Rhythm(SelfAttention):
    """Two heads see the last two days, two see the same hour of each day of the last three weeks."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
        return attend(q, k, v, RHYTHM)


class Forecaster(nn.Module):
    """The next value of each series at every hour, as what it was a week before and a correction."""

    def __init__(self, width: int):
        super().__init__()
        self.read, self.write = nn.Linear(6, width), nn.Linear(width, 1)  # two values, and what hour it is
        self.blocks = nn.Sequential(*(TransformerBlock(GPT2Config(n_head=4, n_embed=width)) for _ in range(2)))
        for block in self.blocks:
            block.attn = Rhythm(4, width)

    def forward(self, values: Tensor) -> Tensor:  # [B, N] -> [B, N]
        hours = torch.arange(values.shape[1], device=values.device)
        clock = [f(2 * torch.pi * hours / period) for period in (DAY, WEEK) for f in (torch.sin, torch.cos)]
        last_week = F.pad(values, (WEEK - 1, 0))[:, : values.shape[1]]  # of the hour to come
        x = self.read(torch.stack([values, last_week, *(c.expand_as(values) for c in clock)], dim=-1))
        return last_week + self.write(self.blocks(x))[..., 0]


def series(count: int, length: int) -> Tensor:
    """[count, length] series of mean 0 and spread 1."""
    hours = torch.arange(length).float()
    draw = torch.rand(count, 5, 1).unbind(1)
    daily = (0.5 + draw[0]) * torch.sin(2 * torch.pi * (hours / DAY + draw[1]))
    weekly = (0.5 + draw[2]) * torch.sin(2 * torch.pi * (hours / WEEK + draw[3])).sign()  # some days are not as others
    level = 0.02 * torch.randn(count, length).cumsum(1) + (draw[4] - 0.5) * hours / WEEK
    made = daily + weekly + level + 0.1 * torch.randn(count, length)
    return (made - made.mean(1, keepdim=True)) / made.std(1, keepdim=True)


def main(asked: Forecast) -> tuple[float, float]:
    torch.manual_seed(asked.seed)
    model = Forecaster(asked.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=asked.steps)
    for step in range(asked.steps):
        values = series(asked.batch, asked.context + 1)
        loss = F.smooth_l1_loss(model(values[:, :-1]), values[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)

    whole = series(64, asked.context + asked.horizon)
    known, future = whole[:, : asked.context], whole[:, asked.context :]
    with torch.no_grad():
        for _ in range(asked.horizon):
            known = torch.cat([known, model(known)[:, -1:]], dim=1)
    ours = (known[:, asked.context :] - future).abs().mean().item()
    naive = (whole[:, asked.context - WEEK :][:, : asked.horizon] - future).abs().mean().item()
    print(f"mean error over {asked.horizon} hours: {ours:.3f}; of repeating last week: {naive:.3f}")
    return ours, naive


if __name__ == "__main__":
    main(tyro.cli(Forecast))
