"""Runs attention over chosen blocks by Triton's kernels in its interpreter, and prints what fails as JSON.

Float32 and float16 only: the interpreter multiplies bfloat16 tiles as if they were integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch
import triton.language as tl
from torch import Tensor

from gossamer.indexed import Selection, attend_indexed
from gossamer.kernels.block_choices import requirements
from gossamer.kernels.block_choices.configs import chosen_config
from gossamer.kernels.block_choices.items import list_items
from gossamer.kernels.block_choices.lists import Choices, ChosenAxes, Sharing, grid
from gossamer.kernels.block_choices.road import Blocks, runs_of
from gossamer.kernels.indexed import Inputs, Returning
from gossamer.kernels.problem import Softmax
from gossamer.kernels.triton.block_choices import TritonChosen
from gossamer.kernels.triton.chosen_blocks import TRITON_BLOCKS
from tests.kernels.interpreter import tell


@dataclass(frozen=True)
class Case:
    """Shapes of a call; numbers are drawn from beyond both ends of the blocks, and twice."""

    heads: int = 4
    key_heads: int = 2
    runs: int = 2
    queries: int = 40
    keys: int = 53
    size: int = 16
    chosen: int = 3
    width: int = 16
    value_width: int = 16
    causal: bool = True
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    alike: bool = False
    """Whether all queries choose the same, so that tiles share it."""


class Apart(TritonChosen):
    """No tile computes what few of its queries chose."""

    sharing = Sharing(3)


def visible(indices: Tensor, case: Case) -> Tensor:
    """[B, H, Q, K], by comparing each key's block with each number."""
    block = torch.arange(case.keys) // case.size
    seen = (indices[..., None, :] == block[:, None]).any(-1)
    if case.causal:
        position = torch.arange(case.keys - case.queries, case.keys)
        seen = seen & (torch.arange(case.keys) <= position[:, None])
    return seen.repeat_interleave(case.heads // case.runs, 1)


def drawn(case: Case) -> tuple[Tensor, ...]:
    shape = 1, case.runs, 1 if case.alike else case.queries, case.chosen
    blocks = -(-case.keys // case.size)
    indices = torch.randint(-1, blocks + 1, shape, dtype=torch.int32).expand(-1, -1, case.queries, -1).clone()
    indices[:, :, case.queries // 2] = -1  # sees nothing
    q = torch.randn(1, case.heads, case.queries, case.width, dtype=case.dtype)
    k = torch.randn(1, case.key_heads, case.keys, case.width, dtype=case.dtype)
    v = torch.randn(1, case.key_heads, case.keys, case.value_width, dtype=case.dtype)
    return q, k, v, indices


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    scores = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(1, -1, q.shape[2], 1)], -1)
    lse = torch.logsumexp(scores, -1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return weights[..., : k.shape[2]] @ v, lse


def check_definition(case: Case) -> None:
    """Forward, log-sum-exp and all gradients against float64."""
    q, k, v, indices = drawn(case)
    seen = visible(indices, case)
    sinks = torch.randn(case.heads) if case.sinks else None
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    want, want_lse = dense(*wide, seen, None if sinks is None else sinks.double())
    grad, grad_lse = torch.randn_like(want), torch.randn_like(want_lse)
    grad_lse = grad_lse.masked_fill(~seen.any(-1), 0.0)
    finite = torch.where(want_lse == -torch.inf, 0.0, want_lse)
    wanted = torch.autograd.grad((want * grad).sum() + (finite * grad_lse).sum(), wide)
    blind = ~seen.any(-1)
    q = q.masked_fill(blind[..., None], torch.nan)  # whatever stands there changes nothing
    unseen = ~seen.view(1, case.key_heads, -1, *seen.shape[2:]).any(2).any(2)
    k, v = (x.masked_fill(unseen[..., None], torch.nan) for x in (k, v))
    given = q, k, v, indices, case.size, case.causal, case.width**-0.5
    apart, apart_lse = Apart(*given).forward(sinks)
    work = TritonChosen(*given)
    out, lse = work.forward(sinks)
    found = work.backward(out, lse, grad.to(case.dtype), grad_lse.float())
    eps = torch.finfo(case.dtype).eps
    results = (apart, out, *found), (want, want, *wanted)
    for name, a, b in zip(("out, rare apart", "out", "dq", "dk", "dv"), *results, strict=True):
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)
        assert error <= 32 * eps, f"{name} is off by {error:.2e}"
    assert torch.equal(lse == -torch.inf, want_lse == -torch.inf)
    error = torch.stack([lse, apart_lse]).double().sub(want_lse).nan_to_num(0.0, 0.0, 0.0).abs().max()
    assert error <= 32 * torch.finfo(torch.float32).eps * 8 if case.dtype == torch.float32 else error <= 32 * eps
    assert not out[blind].any() and not found[0][blind].any()


def check_parts() -> None:
    """Each part of a tile takes all that its queries chose of the tile's list, and skips fewer than the step."""
    case = Case(queries=64, keys=960, size=16, chosen=12, runs=1, causal=False)
    _, _, _, indices = drawn(case)
    choices = Choices.of(indices, case.size, case.keys, 32, causal=False)
    tiles = [choice_of(indices, tile) for tile in range(2)]
    for least, step in ((0, 3), (1, 4), (2, 2)):
        shared, own = choices.shared(Sharing(least, 2, step))
        rare = choices.rare(Sharing(least, 2, step))
        apart = 0
        for tile, chose in enumerate(tiles):
            halves = chose.view(2, 16, 60).any(1)
            count = chose.sum(0)
            expected = ((count > 0) & (count >= least * (halves.sum(0) + 1))).nonzero()[:, 0].tolist()
            listed = shared.blocks[0, tile, : shared.counts[0, tile]].tolist()
            assert listed == expected
            apart += int(count.sum() - count[listed].sum())
            for half in range(2):
                total = int(own.counts[0, tile, half])
                places = own.places[0, tile, half, :total].tolist()
                assert own.blocks[0, tile, half, :total].tolist() == [listed[x] for x in places]
                assert {x for x, block in enumerate(listed) if halves[half, block]} <= set(places)
                assert all(b - a <= step for a, b in zip([-1, *places], [*places, len(listed)], strict=True))
                for place, word in zip(places, own.members[0, tile, half, :total].tolist(), strict=True):
                    bits = [(word >> bit) & 1 for bit in range(16)]
                    assert bits == chose[half * 16 : half * 16 + 16, listed[place]].int().tolist()
        assert int(rare.totals.sum()) == apart == int(rare.counts.sum())


def choice_of(indices: Tensor, tile: int) -> Tensor:
    """bool [32, 60]: which blocks each query of a tile chose."""
    rows = indices[0, 0, tile * 32 : tile * 32 + 32]
    return (rows[:, :, None] == torch.arange(60)).any(1)


def check_complete() -> None:
    """A tile lists all that its queries chose where that is no dearer than what is rare apart."""
    case = Case(queries=96, keys=960, size=16, chosen=12, runs=1, causal=False)
    indices = drawn(case)[3]
    indices[:, :, 32:64] = indices[:, :, 32:33]  # the second tile's queries choose the same, but for one block each
    indices[:, :, 32:64, 0] = torch.randint(0, 6, (32,))
    choices = Choices.of(indices, case.size, case.keys, 32, causal=False)
    tiles = [choice_of(indices, tile) for tile in range(3)]
    seen = set()
    for weight in (0, 3, 30, 1000):
        sharing = Sharing(3, 2, 2, weight)
        shared, _ = choices.shared(sharing)
        rare, lists = choices.rare(sharing, shared.complete), []
        for tile, chose in enumerate(tiles):
            count, parts = chose.sum(0), chose.view(2, 16, 60).any(1).sum(0)
            apart = (count > 0) & (count < 3 * (parts + 1))
            room = (count > 0).sum() <= 32 * 12 // 6
            complete = bool(room and parts[apart].sum() * weight * 32 <= (count[apart].sum() + 32) * 32)
            seen.add((weight, complete))
            assert bool(shared.complete[0, tile]) == complete
            lists.append(count > 0 if complete else (count > 0) & ~apart)
            listed = shared.blocks[0, tile, : shared.counts[0, tile]].tolist()
            assert listed == lists[-1].nonzero()[:, 0].tolist()
        left = torch.stack([chose & ~listed for chose, listed in zip(tiles, lists, strict=True)]).flatten(0, 1)
        assert rare.counts[0].tolist() == left.sum(1).tolist() and rare.totals[0].tolist() == left.sum(0).tolist()
        for block, (first, total) in enumerate(zip(rare.starts[0].tolist(), rare.totals[0].tolist(), strict=True)):
            entries = rare.entries[0, first : first + total] // 16
            assert entries.tolist() == left[:, block].nonzero()[:, 0].tolist()
    assert (0, True) in seen and (1000, False) in seen and len({complete for weight, complete in seen}) == 2


def check_items() -> None:
    """Parts of lists: each once, none too long, and those of the longer classes before the others."""
    part, classes, most = 16, 16, 200
    totals = torch.randint(0, 24, (2, 40), dtype=torch.int32)
    totals[0, ::5], totals[0, 7], totals[1, 1::9] = 0, 130, torch.tensor([23, 24, 25, 39, 40], dtype=torch.int32)
    axes = ChosenAxes(1000, 640, 0, 40, tl.constexpr(True))
    starts, first_items = (torch.empty_like(totals) for _ in range(2))
    items, parts = (torch.full((2, most), -5, dtype=torch.int32) for _ in range(2))
    grid(list_items, 2)(totals, starts, first_items, items, parts, axes, most, PART=part, WIDTH=16, CLASSES=classes)
    for lane in range(2):
        lists = totals[lane].tolist()
        sizes = {}
        for block, left in enumerate(lists):
            number = 0
            while left:
                sizes[block, number] = size = left if left < part + part // 2 else part
                left, number = left - size, number + 1
        assert starts[lane].tolist() == [sum(lists[:block]) for block in range(40)]
        assert first_items[lane].tolist() == [sum(at < block for at, _ in sizes) for block in range(40)]
        placed = list(zip(items[lane].tolist(), parts[lane].tolist(), strict=True))
        assert sorted(placed[: len(sizes)]) == sorted(sizes)
        assert items[lane, len(sizes) :].tolist() == [40] * (most - len(sizes))
        of_class = [sizes[each] * classes // (part + part // 2) for each in placed[: len(sizes)]]
        assert of_class == sorted(of_class, reverse=True)


def check_name() -> None:
    """The road that is called by its name gives what the one gives that lets each query read its blocks."""
    requirements.FEWEST_QUERIES = 64
    case = Case(queries=64, keys=70, chosen=2)
    q, k, v, indices = drawn(case)
    selection, found = Selection(indices, case.size, causal=True), []
    for backend in ("blocks", "triton"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out, lse = attend_indexed(*leaves, selection, return_lse=True, backend=backend)
        due = out.square().sum() + lse.masked_fill(lse == -torch.inf, 0.0).sum()
        found.append([out, lse, *torch.autograd.grad(due, leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def check_batch() -> None:
    """Batch rows, key heads that choose alike and heads inside positions give what each gives alone, to the bit,
    however many key heads of them are in memory together."""
    case = Case(runs=1, queries=20, keys=50, width=24)
    rows = [drawn(case) for _ in range(2)]
    grads = [(torch.randn(1, 4, 20, 16), torch.randn(1, 4, 20)) for _ in rows]
    scale = case.width**-0.5

    def results(q: Tensor, k: Tensor, v: Tensor, numbers: Tensor, grad: Tensor, grad_lse: Tensor) -> list[Tensor]:
        work = TritonChosen(q, k, v, numbers, case.size, True, scale)
        out, lse = work.forward()
        return [out, lse, *work.backward(out, lse, grad, grad_lse)]

    alone = [
        torch.cat(x) for x in zip(*(results(*row, *due) for row, due in zip(rows, grads, strict=True)), strict=True)
    ]
    q, k, v, numbers, grad, grad_lse = (
        torch.cat(x) for x in zip(*((*row, *due) for row, due in zip(rows, grads, strict=True)), strict=True)
    )
    inside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, grad)]
    config = TritonChosen(q, k, v, numbers, case.size, True, scale).config
    for scratch in (2 << 30, 3 * 20 * 3 * 2 * 24 * 4, 1):
        with mock.patch.object(TritonChosen, "config", replace(config, scratch=scratch)):
            for given in ((q, k, v, grad), inside):
                found = results(*given[:3], numbers.long(), given[3], grad_lse)
                assert all(map(torch.equal, found, alone))


def check_runs(causal: bool) -> None:
    """Queries whose pieces do not fit the scratch together are computed some at a time, to the same numbers."""
    case = Case(queries=75, keys=90, chosen=4, causal=causal)
    q, k, v, indices = drawn(case)
    sinks, scale = torch.randn(case.heads), case.width**-0.5
    selection = Selection(indices, case.size, causal=causal)
    given = Inputs(q, k, v, case.value_width, sinks, selection, Softmax(scale, 0.0, 0.0, None))
    road, found = Blocks(TRITON_BLOCKS), []
    grad, grad_lse = torch.randn_like(q), torch.randn(q.shape[:3])
    of_query = case.chosen * 2 * case.width * 4
    for most in (128, 20):
        config = replace(chosen_config(q.dtype, case.width), scratch=most * of_query + of_query // 2)
        with mock.patch.object(requirements, "chosen_config", return_value=config):
            assert requirements.queries_at_once(given) == most
            out, lse = road.forward(given)
            found.append([out, lse, *road.backward(given, Returning(out, lse, grad, grad_lse))])
            lengths = [run.q.shape[2] for _, run in runs_of(given)]
            assert lengths == ([75] if most == 128 else [19, 19, 19, 18])
            few = replace(given, k=k[:, :, :40], v=v[:, :, :40])
            fewest, requirements.FEWEST_QUERIES = requirements.FEWEST_QUERIES, 64
            assert (requirements.unfit(few) is not None) == (causal and most == 20)
            requirements.FEWEST_QUERIES = fewest
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    want, want_lse = dense(*wide, visible(indices, case), sinks.double())
    wanted = torch.autograd.grad((want * grad).sum() + (want_lse * grad_lse).sum(), wide)
    for whole, runs, right in zip(*found, (want, want_lse, *wanted), strict=True):
        assert runs.dtype == whole.dtype and runs.stride() == whole.stride()
        for each in (whole, runs):
            torch.testing.assert_close(each.double(), right, atol=1e-5, rtol=1e-5)


def check_scratch() -> None:
    """Parts of gradients that items write take no more scratch than pieces do."""
    case = Case(queries=20, keys=330, key_heads=4, runs=4)
    q, k, v, indices = drawn(case)
    work = TritonChosen(q, k, v, indices, case.size, case.causal, 0.25)
    assert work._together(16) == work._together(16, 21) == 4
    of_lane = 4 * 21 * 16 * (16 + 16)
    with mock.patch.object(TritonChosen, "config", replace(work.config, scratch=2 * of_lane)):
        assert work._together(16) == 4 and work._together(16, 21) == 2
    check_definition(case)


CHECKS = {
    "causal": partial(check_definition, Case()),
    "shared by tiles": partial(check_definition, Case(alike=True, queries=53, sinks=True)),
    "bidirectional, sinks, one run": partial(check_definition, Case(causal=False, sinks=True, runs=1)),
    "more queries than keys": partial(check_definition, Case(queries=60, keys=37)),
    "widths, float16": partial(check_definition, Case(width=24, value_width=40, dtype=torch.float16)),
    "groups of three": partial(check_definition, Case(heads=6, queries=20, size=32, chosen=2)),
    "many heads": partial(check_definition, Case(heads=16, key_heads=1, runs=1, queries=9, keys=40)),
    "parts of tiles": check_parts,
    "complete tiles": check_complete,
    "items of lists": check_items,
    "by name": check_name,
    "batch rows": check_batch,
    "runs of queries": partial(check_runs, True),
    "runs of queries, bidirectional": partial(check_runs, False),
    "scratch": check_scratch,
}


if __name__ == "__main__":
    tell(CHECKS)
