"""What right means for `attend_blocks`: what `attend` gives for the pattern that a layout spells out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.block_sparse import attend_blocks
from gossamer.patterns import Blocks, Pattern, PerHead, Tokens
from gossamer.reference import visible
from tests.checks import Problem, Setting, bounds, draw, oracle, run


@dataclass(frozen=True)
class Shown:
    """Blocks of a problem that are visible: a layout of its own for each batch row or head, or one for all."""

    block: int = 16
    own_batch: bool = False
    own_heads: bool = False
    within: tuple[tuple[int, int], ...] | None = None
    share: float = 0.5

    def layout(self, setting: Setting) -> Tensor:
        """bool [B or 1, H or 1, query blocks, key blocks]: a row that sees nothing and one that sees all among them."""
        (batch, heads, queries, _), (_, _, keys, _), _ = setting.shapes
        shape = batch if self.own_batch else 1, heads if self.own_heads else 1, -(-queries // self.block)
        chances = torch.rand(*shape, -(-keys // self.block), generator=torch.Generator().manual_seed(7))
        layout = chances < self.share
        layout[..., 0, :], layout[..., -1, :] = False, True
        return layout.to(setting.device)

    def ends(self, setting: Setting) -> Tensor | None:
        """int32 [B, 2]."""
        return None if self.within is None else torch.tensor(self.within, dtype=torch.int32, device=setting.device)

    def pattern(self, setting: Setting, row: int) -> Pattern:
        """What the heads of a batch row see; there are as many blocks of queries as stand in front of query 0."""
        (batch, heads, queries, _), (_, _, keys, _), _ = setting.shapes
        assert (keys - queries) % self.block == 0 and keys >= queries
        layouts = self.layout(setting).expand(batch, heads, -1, -1)[row].tolist()
        before = [[False] * len(layouts[0][0])] * ((keys - queries) // self.block)
        pattern: Pattern = PerHead([(Blocks(self.block, before + layout), 1) for layout in layouts])
        if self.within is not None:
            sequence = Tokens(range(*self.within[row]))
            pattern = pattern & sequence & sequence.T
        return pattern


def attended(problem: Problem, setting: Setting, shown: Shown) -> tuple[Tensor, Tensor]:
    return attend_blocks(
        problem.q, problem.k, problem.v, shown.layout(setting), block=shown.block, within=shown.ends(setting),
        scale=problem.scale, return_lse=True, backend=problem.backend,
    )  # fmt: skip


def check_layout(setting: Setting, shown: Shown) -> None:
    """The error is bounded as `check_error` says; of the batch rows' bounds the largest counts, as it does there."""
    whole = draw(shown.pattern(setting, 0), setting)
    found = run(lambda problem: attended(problem, setting, shown), whole)
    right, most = [], dict.fromkeys(found, 0.0)
    for row in range(setting.batch):
        named = {name: x[row : row + 1] for name, x in {**whole.inputs, "grad_out": whole.grad_out}.items()}
        problem = replace(whole, **named, grad_lse=whole.grad_lse[row : row + 1], pattern=shown.pattern(setting, row))
        right.append(run(oracle, problem.to(torch.float64)))
        most = {name: max(most[name], bound) for name, bound in bounds(problem, right[-1]).items()}
    for name, bound in most.items():
        x, y = found[name], torch.cat([each[name] for each in right])
        assert not x.isnan().any(), f"{name} has NaN"
        assert torch.equal(x.isfinite(), y.isfinite()), f"{name} is infinite elsewhere"
        error = (x.double() - y)[y.isfinite()].abs()
        assert (error <= bound).all(), f"{name}: {error.max():.2e} is over {bound:.2e}"


def check_layout_support(setting: Setting, shown: Shown) -> None:
    """Exactly the visible pairs have a probability, seen from the queries and from the keys; no tolerance."""
    (batch, heads, queries, _), (_, groups, keys, _), _ = setting.shapes
    most = max(queries, keys)
    problem = draw(shown.pattern(setting, 0), replace(setting, value_width=most))
    eye = torch.eye(most, dtype=setting.dtype, device=setting.device)
    values = eye[:keys].expand(batch, groups, -1, -1).contiguous().requires_grad_()
    out, _ = attended(replace(problem, q=0 * problem.q, v=values), setting, shown)
    (found,) = torch.autograd.grad(out, values, eye[:queries].expand(batch, heads, -1, -1).contiguous())
    for row in range(batch):
        mask = visible(shown.pattern(setting, row), queries, keys, out.device)
        assert torch.equal(out[row, ..., :keys] > 0, mask), "the forward sees other pairs"
        assert torch.equal(found[row, ..., :queries] > 0, mask.unflatten(0, (groups, -1)).any(1).mT), (
            "the gradient of v sees other pairs"
        )


FLOATS = Setting(heads=4, queries=80, dtype=torch.float32, batch=2)
CASES: dict[str, tuple[Setting, Shown]] = {
    "one for all": (FLOATS, Shown()),
    "a layout a head": (FLOATS, Shown(own_heads=True)),
    "a layout a sequence": (FLOATS, Shown(own_batch=True)),
    "each its own": (replace(FLOATS, key_heads=2), Shown(own_batch=True, own_heads=True)),
    "one key head": (replace(FLOATS, key_heads=1), Shown(block=32, own_heads=True)),
    "uneven ends": (replace(FLOATS, queries=75), Shown(block=32, own_heads=True)),
    "fewer queries": (replace(FLOATS, queries=43, keys=75), Shown(block=32)),
    "large blocks": (replace(FLOATS, queries=200, heads=1, batch=1), Shown(block=128)),
    "blocks of 64": (replace(FLOATS, queries=150, heads=2, batch=1, width=72), Shown(block=64, own_heads=True)),
    "float16": (replace(FLOATS, dtype=torch.float16), Shown(own_heads=True)),
    "within": (FLOATS, Shown(own_heads=True, within=((3, 61), (20, 80)))),
    "within, fewer queries": (replace(FLOATS, queries=43, keys=75), Shown(block=32, within=((0, 50), (40, 75)))),
    "within nothing": (FLOATS, Shown(within=((0, 80), (90, 95)))),
    "nothing": (FLOATS, Shown(share=0.0)),
    "narrow values": (replace(FLOATS, width=24, value_width=13), Shown(own_heads=True)),
}
SUPPORT = ("each its own", "uneven ends", "fewer queries", "within", "blocks of 64")
