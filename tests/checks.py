"""What right means. Each check raises AssertionError; `test_planted_faults` proves that each one looks.

Everything here asks the public `attend` and the dense mask of the pattern, so it holds for any backend and device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gossamer import attend
from gossamer.kernels import Softmax
from gossamer.kernels.dropout import keep_factor
from gossamer.kernels.tiled import TILED
from gossamer.patterns import Blocks, Causal, Extent, Pattern, Tokens, parse
from gossamer.patterns.clauses import Clause
from gossamer.patterns.counting import count
from gossamer.patterns.cover import cover
from gossamer.patterns.normal_form import normal_form
from gossamer.plan import Band, Columns, Plan, Rows, plan
from gossamer.plan import Blocks as BlocksTerm
from gossamer.reference import reference, visible
from gossamer.runs import attend_runs


@dataclass(frozen=True)
class Setting:
    """Sizes and options of a problem. `key_heads`, `keys` and `value_width` follow their partner where None."""

    heads: int = 2
    key_heads: int | None = None
    queries: int = 136
    keys: int | None = None
    width: int = 16
    value_width: int | None = None
    batch: int = 1
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    magnitude: float = 1.0
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    seed: int = 0
    backend: str | None = None
    within: tuple[tuple[int, int], ...] | None = None
    """Where each sequence lies, or all of them."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        groups, keys = self.key_heads or self.heads, self.queries if self.keys is None else self.keys
        values = self.value_width or self.width
        return (
            (self.batch, self.heads, self.queries, self.width),
            (self.batch, groups, keys, self.width),
            (self.batch, groups, keys, values),
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs of `attend`, and the gradients that come back to its two outputs."""

    pattern: Pattern
    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None
    grad_out: Tensor
    grad_lse: Tensor
    scale: float | None = None
    softcap: float | None = None
    backend: str | None = None
    within: Tensor | None = None
    """int32 [B, 2], or [1, 2] for all sequences alike."""
    runs: tuple[Tensor, Tensor] | None = None
    """(start, stop) of `attend_runs`, int32 [B, Q] or [1, Q]: the pattern then counts for nothing."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        named = {"q": self.q, "k": self.k, "v": self.v, "sinks": self.sinks}
        return {name: x for name, x in named.items() if x is not None}

    def to(self, dtype: torch.dtype) -> Problem:
        """The very same numbers in a wider dtype."""
        return replace(self, grad_out=self.grad_out.to(dtype), **{n: x.to(dtype) for n, x in self.inputs.items()})


def draw(pattern: Pattern, setting: Setting) -> Problem:
    """A problem of normal numbers; the same numbers for the same seed, on every device and in every dtype."""
    generator = torch.Generator().manual_seed(setting.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(setting.device)

    q, k, v = (normal(*shape).mul(setting.magnitude).to(setting.dtype) for shape in setting.shapes)
    return Problem(
        pattern=pattern,
        q=q,
        k=k,
        v=v,
        sinks=normal(setting.heads).to(setting.dtype) if setting.sinks else None,
        grad_out=normal(*q.shape[:3], v.shape[3]).to(setting.dtype),
        grad_lse=normal(*q.shape[:3]).float(),
        scale=setting.scale,
        softcap=setting.softcap,
        backend=setting.backend,
        within=None if setting.within is None else torch.tensor(setting.within, dtype=torch.int32, device=q.device),
    )


Attention = Callable[[Problem], tuple[Tensor, Tensor]]


def ours(problem: Problem) -> tuple[Tensor, Tensor]:
    if problem.runs is not None:
        given = problem.q, problem.k, problem.v, *problem.runs
        return attend_runs(*given, scale=problem.scale, return_lse=True, backend=problem.backend)
    return attend(
        problem.q, problem.k, problem.v, problem.pattern,
        scale=problem.scale, softcap=problem.softcap, sinks=problem.sinks, return_lse=True, backend=problem.backend,
        within=None if problem.within is None else problem.within.expand(problem.q.shape[0], 2).contiguous(),
    )  # fmt: skip


def confined(pattern: Pattern, first: int, last: int) -> Pattern:
    """What the pattern shows between positions `first … last - 1`, in the words of patterns alone."""
    inside = range(max(first, 0), last)
    return pattern & Tokens(inside) & Tokens(inside).T if inside else Causal() & ~Causal()


def _of_runs(start: list[int], stop: list[int], keys: int) -> Pattern:
    """The runs as a table of single pairs; as many queries as keys."""
    return Blocks(1, ["0" * a + "1" * (b - a) + "0" * (keys - b) for a, b in zip(start, stop, strict=True)])


def alone(problem: Problem) -> Iterator[Problem]:
    """Each sequence on its own, with a pattern that says all that it sees."""
    batch, keys = problem.q.shape[0], problem.k.shape[2]
    if problem.runs is not None:
        start, stop = (end.expand(batch, -1).tolist() for end in problem.runs)
        patterns = [_of_runs(*ends, keys) for ends in zip(start, stop, strict=True)]
    else:
        patterns = [confined(problem.pattern, *ends) for ends in problem.within.expand(batch, 2).tolist()]
    for number, pattern in enumerate(patterns):
        q, k, v = (x[number : number + 1] for x in (problem.q, problem.k, problem.v))
        yield replace(problem, pattern=pattern, q=q, k=k, v=v, within=None, runs=None)


def one_by_one(attention: Attention) -> Attention:
    """The attention of each sequence on its own where sequences see pairs of their own."""

    @wraps(attention)
    def each(problem: Problem) -> tuple[Tensor, Tensor]:
        if problem.within is None and problem.runs is None:
            return attention(problem)
        outs, lses = zip(*map(attention, alone(problem)), strict=True)
        return torch.cat(outs), torch.cat(lses)

    return each


@one_by_one
def oracle(problem: Problem) -> tuple[Tensor, Tensor]:
    """The definition in float64."""
    return reference(
        problem.q, problem.k, problem.v, problem.pattern,
        scale=problem.scale, softcap=problem.softcap, sinks=problem.sinks,
    )  # fmt: skip


@one_by_one
def plain(problem: Problem) -> tuple[Tensor, Tensor]:
    """The definition in the dtype of the inputs: what anybody's first program would do."""
    q, k, v = problem.q, problem.k, problem.v
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = q * (q.shape[-1] ** -0.5 if problem.scale is None else problem.scale) @ k.mT
    if problem.softcap is not None:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    scores = scores.masked_fill(~visible(problem.pattern, q.shape[2], k.shape[2], q.device), -torch.inf)
    if problem.sinks is not None:
        scores = torch.cat([scores, problem.sinks[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    lse = torch.logsumexp(scores, -1)
    empty = (lse == -torch.inf)[..., None]
    probabilities = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    return probabilities[..., : k.shape[2]] @ v, lse


def run(attention: Attention, problem: Problem) -> dict[str, Tensor]:
    """Outputs and gradients; the inputs must come out as they went in, to the bit."""
    before = {name: x.clone() for name, x in problem.inputs.items()}
    leaves = {name: x.detach().requires_grad_() for name, x in problem.inputs.items()}
    out, lse = attention(replace(problem, **leaves))
    grad_lse = problem.grad_lse.to(lse.dtype).masked_fill(lse == -torch.inf, 0.0)
    gradients = torch.autograd.grad((out, lse), list(leaves.values()), (problem.grad_out, grad_lse))
    for name, x in problem.inputs.items():
        assert torch.allclose(x, before[name], rtol=0, atol=0, equal_nan=True), f"{name} was written to"
    named = {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"out": out.detach(), "lse": lse.detach()} | named


def check_equals_oracle(problem: Problem) -> None:
    """In float64 nothing but the order of sums differs from the definition."""
    found, right = run(ours, problem), run(oracle, problem)
    for name, x in right.items():
        assert found[name].shape == x.shape, f"{name} has shape {tuple(found[name].shape)}"
        torch.testing.assert_close(
            found[name], x, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


def check_error(problem: Problem) -> None:
    """The error is at most twice (of gradients: three times) that of plain attention in the same dtype."""
    found, right = run(ours, problem), run(oracle, problem.to(torch.float64))
    for name, bound in bounds(problem, right).items():
        seen = right[name].isfinite()
        assert not found[name].isnan().any(), f"{name} has NaN"
        assert torch.equal(found[name].isfinite(), seen), f"{name} is infinite where it should not be, or finite"
        error = _largest(found[name][seen].double() - right[name][seen])
        assert error <= bound, f"{name}: {error:.2e} is over {bound:.2e}"


def check_agreement(problem: Problem, backends: Iterable[str]) -> None:
    """Backends differ by no more than each may differ from the definition."""
    results = {backend: run(ours, replace(problem, backend=backend)) for backend in backends}
    allowed = bounds(problem, run(oracle, problem.to(torch.float64)))
    for (one, a), (other, b) in combinations(results.items(), 2):
        for name, bound in allowed.items():
            seen = a[name].isfinite()
            assert torch.equal(b[name].isfinite(), seen), f"{name} of {one} and {other}"
            error = _largest(a[name][seen].double() - b[name][seen].double())
            assert error <= 2 * bound, f"{name} of {one} and {other}: {error:.2e} is over 2 × {bound:.2e}"


def bounds(problem: Problem, right: dict[str, Tensor]) -> dict[str, float]:
    """How far each result may be from the definition's: a few times as far as plain attention is."""
    naives, found = [_plainly(problem, order) for order in _orders(problem.q.shape[-1])], {}
    for name, x in right.items():
        seen, dtype = x.isfinite(), naives[0][name].dtype
        rounding = torch.finfo(dtype).eps * _largest(x[seen])
        if name == "lse":
            rounding *= 2  # natural logarithms, though the machine's are of base 2
        if name.startswith("gradient"):
            rounding += _rounding_of_scores(problem, name, right)
        times = 3 if name.startswith("gradient") else 2
        error = max(_largest(naive[name][seen].double() - x[seen]) for naive in naives)
        found[name] = times * error + rounding
    return found


def _orders(width: int) -> list[Tensor]:
    """Orders in which plain attention may as well add a score up: each rounds otherwise, and one may be lucky."""
    as_it_stands = torch.arange(width)
    return [as_it_stands, as_it_stands.flip(0), as_it_stands.roll(width // 2)]


def _plainly(problem: Problem, order: Tensor) -> dict[str, Tensor]:
    """What plain attention gives with its width in this order, and its log-sum-exp in float32 at least."""
    problem, back = replace(problem, q=problem.q[..., order], k=problem.k[..., order]), order.argsort()
    found = run(plain, problem)
    found["lse"] = plain(problem.to(torch.promote_types(problem.q.dtype, torch.float32)))[1]
    return {name: x[..., back] if name in ("gradient of q", "gradient of k") else x for name, x in found.items()}


def _rounding_of_scores(problem: Problem, name: str, right: dict[str, Tensor]) -> float:
    """What one float32 rounding of the log-sum-exp, and of the terms that cancel in a score's gradient, costs.

    Any backward that makes the probabilities again from the log-sum-exp has both; plain attention has neither
    where a query sees a single key.
    """
    lse = right["lse"]
    probabilities = _largest(lse[lse.isfinite()]) * _largest(right[name])
    if name == "gradient of sinks":  # a sum over queries, whose terms may cancel
        delta = (right["out"] * problem.grad_out.double()).sum(-1) - problem.grad_lse.double()
        terms = torch.exp(problem.sinks.double()[:, None] - lse) * delta.masked_fill(lse == -torch.inf, 0.0)
        return torch.finfo(torch.float32).eps * _largest(lse[lse.isfinite()]) * _largest(terms.abs().sum((0, 2)))
    partner = {"gradient of q": problem.k, "gradient of k": problem.q}.get(name)
    if partner is None:
        return torch.finfo(torch.float32).eps * probabilities
    values = problem.v.repeat_interleave(problem.q.shape[1] // problem.v.shape[1], 1)
    scale = problem.q.shape[-1] ** -0.5 if problem.scale is None else problem.scale
    terms = _largest(problem.grad_out.double() @ values.mT.double()) * _largest(partner) * scale
    return torch.finfo(torch.float32).eps * (probabilities + terms)


def check_error_beside_sdpa(problem: Problem) -> None:
    """The root mean square error of the output is at most 1.2 times that of torch's own kernel."""
    mask = visible(problem.pattern, problem.q.shape[2], problem.k.shape[2], problem.q.device)
    rows = mask.any(-1).expand(problem.q.shape[:3])
    if not rows.any():
        return
    theirs = F.scaled_dot_product_attention(problem.q, problem.k, problem.v, mask, scale=problem.scale, enable_gqa=True)
    right = oracle(problem.to(torch.float64))[0][rows]
    error, allowed = ((x[rows].double() - right).square().mean().sqrt() for x in (ours(problem)[0], theirs))
    assert error <= 1.2 * allowed, f"{error:.2e} is over 1.2 × {allowed:.2e}"


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def check_support(pattern: Pattern, setting: Setting) -> None:
    """Exactly the visible pairs have a probability and a gradient; no tolerance.

    With scores of zero and values that are slices of the identity, the output is the probability matrix. Slices
    of the identity in place of the gradient, the keys or the queries show it from the three other sides.
    """
    (_, heads, queries, width), (_, groups, keys, _), _ = setting.shapes
    shown = pattern if setting.within is None else confined(pattern, *setting.within[0])
    mask = visible(shown, queries, keys, torch.device(setting.device)).expand(heads, queries, keys)
    several = mask & (mask.sum(-1, keepdim=True) > 1)  # one visible key alone gets no gradient of its score
    several &= torch.finfo(setting.dtype).bits >= 32  # and half precision may round a small one to zero
    slices = max(math.ceil(max(queries, keys) / width), 1)
    problem = draw(pattern, replace(setting, batch=slices, value_width=width))
    problem = replace(problem, grad_lse=torch.zeros_like(problem.grad_lse))
    by_keys = _identity(keys, slices, problem.k)
    by_queries = _identity(queries, slices, problem.q)

    seen = run(ours, replace(problem, q=0 * problem.q, v=by_keys))
    assert torch.equal(_pairs(seen["out"], keys) > 0, mask), "the forward sees other pairs"
    empty = ~mask.any(-1) & (problem.sinks is None)
    assert torch.equal(seen["lse"] == -torch.inf, empty.expand(seen["lse"].shape)), "log-sum-exp of empty rows"

    seen = run(ours, replace(problem, q=0 * problem.q, grad_out=by_queries))["gradient of v"]
    found, right = _pairs(seen, queries) > 0, _of_key_heads(mask, groups).mT
    assert torch.equal(found, right), "the gradient of v sees other pairs"

    seen = run(ours, replace(problem, q=0 * problem.q, k=by_keys))["gradient of q"]
    found = _pairs(seen, keys) != 0
    assert not (found & ~mask).any() and (found | ~several).all(), "the gradient of q sees other pairs"

    seen = run(ours, replace(problem, k=0 * problem.k, q=by_queries))["gradient of k"]
    found = _pairs(seen, queries) != 0
    allowed, needed = (_of_key_heads(x, groups).mT for x in (mask, several))
    assert not (found & ~allowed).any() and (found | ~needed).all(), "the gradient of k sees other pairs"


def _identity(length: int, slices: int, like: Tensor) -> Tensor:
    """[slices, H, length, width]: the columns of the identity, `width` at a time, for each head of `like`."""
    heads, width = like.shape[1], like.shape[3]
    columns = torch.eye(length, slices * width).unflatten(1, (slices, width)).movedim(1, 0)
    return columns.to(like)[:, None].expand(-1, heads, -1, -1)


def _pairs(slices: Tensor, length: int) -> Tensor:
    """[slices, H, N, width] → [H, N, length]."""
    return slices.permute(1, 2, 0, 3).flatten(2)[..., :length]


def _of_key_heads(mask: Tensor, groups: int) -> Tensor:
    """[H, Q, K] → [G, Q, K]: what any query head of each key head sees."""
    return mask.unflatten(0, (groups, -1)).any(1)


def check_no_leak(pattern: Pattern, setting: Setting, times: Iterable[int]) -> None:
    """What comes after token t changes nothing up to t, to the bit, and does change what follows."""
    problem = draw(pattern, setting)
    out, lse = ours(problem)
    for t in times:
        changed = draw(pattern, replace(setting, seed=setting.seed + 1, magnitude=30.0))
        mixed = replace(problem, **{n: torch.cat([x[:, :, : t + 1], changed.inputs[n][:, :, t + 1 :]], 2)
                                    for n, x in problem.inputs.items() if n != "sinks"})  # fmt: skip
        after, after_lse = ours(mixed)
        assert torch.equal(out[:, :, : t + 1], after[:, :, : t + 1]), f"tokens after {t} changed an output before"
        assert torch.equal(lse[:, :, : t + 1], after_lse[:, :, : t + 1]), f"tokens after {t} changed a log-sum-exp"
        assert t + 1 == out.shape[2] or not out.any() or not torch.equal(out, after), "the change was no change"


def check_pieces(pattern: Pattern, setting: Setting, lengths: Iterable[int]) -> None:
    """Queries that come in pieces, each after all keys so far, see what they see in one go."""
    problem = draw(pattern, setting)
    whole, whole_lse = ours(problem)
    start = 0
    for length in lengths:
        end = start + length
        piece = replace(problem, q=problem.q[:, :, start:end], k=problem.k[:, :, :end], v=problem.v[:, :, :end])
        out, lse = ours(piece)
        torch.testing.assert_close(out, whole[:, :, start:end], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(lse, whole_lse[:, :, start:end], rtol=1e-11, atol=1e-11)
        start = end
    assert start == problem.q.shape[2]


def check_empty_rows(pattern: Pattern, setting: Setting) -> None:
    """A query that sees nothing gives 0 and minus infinity, and neither gets nor sends a gradient."""
    problem = draw(pattern, setting)
    shown = pattern if setting.within is None else confined(pattern, *setting.within[0])
    mask = visible(shown, problem.q.shape[2], problem.k.shape[2], problem.q.device)
    empty = ~mask.expand(problem.q.shape[1], -1, -1).any(-1).expand(problem.q.shape[:3])
    assert empty.any(), "every query sees something"
    found = run(ours, problem)
    for name, x in found.items():
        assert not x.isnan().any(), f"{name} has NaN"
    assert (found["lse"][empty] == -torch.inf).all()
    assert (found["out"][empty] == 0).all()
    assert (found["gradient of q"][empty] == 0).all()
    others = run(ours, replace(problem, q=problem.q.masked_fill(empty[..., None], 9.0)))
    for name in ("gradient of k", "gradient of v"):
        assert torch.equal(found[name], others[name]), f"an empty query sent a {name}"


def check_repeatable(problem: Problem) -> None:
    """The same call gives the same bits, forward and backward."""
    first = run(ours, problem)
    for _ in range(2):
        again = run(ours, problem)
        for name, x in first.items():
            assert torch.equal(x, again[name]), f"{name} differs between two runs"


def check_views(pattern: Pattern, setting: Setting) -> None:
    """Any strides give the same numbers; what lies around a view is neither read nor written."""
    problem = draw(pattern, setting)
    right = run(ours, problem)
    for view in (_transposed, _padded, _spaced, _reversed_axes):
        viewed = {name: view(getattr(problem, name)) for name in ("q", "k", "v", "grad_out", "grad_lse")}
        rooms = {name: room.clone() for name, (_, room) in viewed.items()}
        found = run(ours, replace(problem, **{name: x for name, (x, _) in viewed.items()}))
        for name, x in right.items():
            torch.testing.assert_close(found[name], x, rtol=1e-11, atol=1e-11)
        for name, (_, room) in viewed.items():
            torch.testing.assert_close(room, rooms[name], rtol=0, atol=0, equal_nan=True)
    alike = {name: getattr(problem, name)[:1].expand(3, *getattr(problem, name).shape[1:]) for name in viewed}
    found = run(ours, replace(problem, **alike))
    for name in ("out", "lse", "gradient of q", "gradient of k", "gradient of v"):
        torch.testing.assert_close(found[name], right[name][:1].expand_as(found[name]), rtol=1e-11, atol=1e-11)


def _transposed(x: Tensor) -> tuple[Tensor, Tensor]:
    """(view, all of its memory): heads inside tokens, as projections give them."""
    room = x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return room.transpose(1, 2), room


def _padded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens at the front of longer memory, as in a cache, with NaN behind."""
    room = x.new_full((*x.shape[:2], x.shape[2] + 5, *x.shape[3:]), torch.nan)
    room[:, :, : x.shape[2]] = x
    return room[:, :, : x.shape[2]], room


def _spaced(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every second place of the innermost axis, off by one, with NaN between."""
    room = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
    room[..., 1::2] = x
    return room[..., 1::2], room


def _reversed_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first axis innermost."""
    room = x.permute(*reversed(range(x.dim()))).clone(memory_format=torch.contiguous_format)
    return room.permute(*reversed(range(x.dim()))), room


def check_dropout(problem: Problem, probability: float, seed: int) -> None:
    """Forward and backward drop the same pairs: those that `keep_factor` names."""
    (batch, heads, queries, width), keys = problem.q.shape, problem.k.shape[2]
    device = problem.q.device
    streams = torch.arange(batch * heads, device=device)
    q, k = torch.arange(keys - queries, keys, device=device), torch.arange(keys, device=device)
    keep = keep_factor(probability, seed, streams, q, k).unflatten(0, (batch, heads)).double()

    def dropping(problem: Problem) -> tuple[Tensor, Tensor]:
        scale = width**-0.5 if problem.scale is None else problem.scale
        return torch.ops.gossamer.attend(
            problem.q, problem.k, problem.v, problem.sinks, torch.tensor([seed], device=device), None, None,
            problem.pattern.spec, scale, problem.softcap or 0.0, probability, problem.backend,
        )  # fmt: skip

    def dropped(problem: Problem) -> tuple[Tensor, Tensor]:
        return reference(
            problem.q, problem.k, problem.v, problem.pattern,
            scale=problem.scale, softcap=problem.softcap, sinks=problem.sinks, keep=keep,
        )  # fmt: skip

    found, right = run(dropping, problem), run(dropped, problem)
    for name, x in right.items():
        torch.testing.assert_close(found[name], x, rtol=1e-6, atol=1e-6, msg=name)


def check_cost(pattern: Pattern, length: int, most: float) -> None:
    """No more than `most` times the operations of the visible pairs are done, and no tensor is n×n."""
    setting = Setting(heads=pattern.head_cuts[-1] if pattern.head_cuts else 1, queries=length, width=8,
                      dtype=torch.float32)  # fmt: skip
    problem, made = draw(pattern, setting), plan(pattern, length, length, setting.heads)
    with FlopCounterMode(display=False) as counter:  # it sees PyTorch's operations, and no kernel of our own
        TILED.forward(problem.q, problem.k, problem.v, None, made, Softmax(scale=1.0))
    share = counter.get_total_flops() / (2 * made.pairs * 2 * setting.width)
    assert 0.99 <= share <= most, f"{share:.2f} times the operations of the visible pairs are done"


def check_plan(pattern: Pattern, queries: int, keys: int) -> None:
    """The terms cover every visible pair exactly once and no other, and are counted right."""
    heads = pattern.head_cuts[-1] if pattern.head_cuts else 2
    made = plan(pattern, queries, keys, heads)
    mask = np.broadcast_to(pattern.dense_mask(queries, keys), (heads, queries, keys))
    assert [group.first for group in made.groups] == [0, *[group.last for group in made.groups[:-1]]]
    assert made.groups[-1].last == heads
    for group in (part for whole in made.groups for part in whole.apart):
        times = sum((_raster(term, made) for term in group.terms), np.zeros((queries, keys), int))
        for head in range(group.first, group.last):
            assert np.array_equal(times, mask[head]), f"head {head}: {(times != mask[head]).sum()} wrong pairs"
    assert made.pairs == mask.sum()


def _raster(term: Band | Columns | Rows | BlocksTerm, made: Plan) -> np.ndarray:
    """[Q, K] how often the term holds each pair, by nothing but what its fields say."""
    if isinstance(term, BlocksTerm):
        return _raster_blocks(term, made.queries, made.keys)
    held = _held(term, made.extent)
    if isinstance(term, Rows):
        held &= np.isin(np.arange(made.queries), term.queries)[:, None]
    if not isinstance(term, Band) and term.keys is not None:
        held &= np.isin(np.arange(made.keys), term.keys)[None, :]
    return held.astype(int)


def _held(part: Band | Columns | Rows | Clause, extent: Extent) -> np.ndarray:
    """[Q, K] the pairs whose distance and document belong to the part."""
    q, k = (np.array(run, dtype=int) for run in (extent.queries, extent.keys))
    distance, offsets = q[:, None] - k[None, :], part.offsets
    held = (offsets.low <= distance) & (distance <= offsets.high)
    held &= (distance % offsets.step == 0) == offsets.on_step
    if part.documents is not None:
        of_q, of_k = (np.array([_document(part.documents, x) for x in run], int) for run in (q, k))
        held &= (of_q[:, None] == of_k[None, :]) & (of_q >= 0)[:, None]
    return held


def _document(cuts: tuple[int, ...], position: int) -> int:
    return next((i for i in range(len(cuts) - 1) if cuts[i] <= position < cuts[i + 1]), -1)


def _raster_blocks(term: BlocksTerm, queries: int, keys: int) -> np.ndarray:
    times, size = np.zeros((queries, keys), int), term.size
    for row in range(term.starts.shape[1] - 1):
        for block in range(term.starts[0, row], term.starts[0, row + 1]):
            part = times[row * size : (row + 1) * size, term.columns[block] * size : (term.columns[block] + 1) * size]
            tile = term.tiles[term.tile[block]] if term.tile[block] >= 0 else np.ones((size, size), bool)
            part += tile[: part.shape[0], : part.shape[1]]
    return times


def check_normal_form(pattern: Pattern, queries: int, keys: int) -> None:
    """Clauses and rest hold every visible pair exactly once; the count is exact."""
    extent = Extent.aligned(queries, keys)
    form, mask = normal_form(pattern, extent), pattern.dense_mask(queries, keys)
    times = np.zeros((queries, keys), int) if form.rest is None else form.rest.dense_mask(queries, keys).astype(int)
    for clause in form.clauses:
        held = _held(clause, extent)
        held &= True if clause.keys is None else clause.keys[None, :]
        held &= True if clause.queries is None else clause.queries[:, None]
        times += held
    assert np.array_equal(times, mask), f"{(times != mask).sum()} wrong pairs in {form}"
    assert count(pattern, extent) == mask.sum()


def check_cover(pattern: Pattern, queries: int, keys: int, size: int) -> None:
    """The blocks hold every visible pair exactly once, in order, and no block is empty or needlessly masked."""
    found, mask = cover(pattern, Extent.aligned(queries, keys), size), pattern.dense_mask(queries, keys)
    places = list(zip(found.rows.tolist(), found.columns.tolist(), strict=True))
    assert places == sorted(set(places)), "blocks repeat or are out of order"
    seen = np.zeros_like(mask)
    for (row, column), tile in zip(places, found.tile, strict=True):
        part = np.s_[row * size : (row + 1) * size, column * size : (column + 1) * size]
        assert mask[part].any(), "a block holds no visible pair"
        assert (tile < 0) == mask[part].all(), "a full block has a mask, or a partial one has none"
        rows, columns = mask[part].shape
        seen[part] = True if tile < 0 else found.tiles[tile][:rows, :columns]
    assert np.array_equal(seen, mask)


def check_bounds(pattern: Pattern, queries: int, keys: int, rectangles: int, seed: int = 0) -> None:
    """`may` is False only where no pair of a rectangle is allowed, `must` True only where all are."""
    random, extent = np.random.default_rng(seed), Extent.aligned(queries, keys)
    q, k = (np.sort(random.integers(0, length, (2, rectangles)), axis=0) for length in (queries, keys))
    q[1, ::3], k[1, ::4] = q[0, ::3], k[0, ::4]  # rectangles of one row or column too
    mask, start = pattern.dense_mask(queries, keys), extent.queries.start
    may, must = pattern.bounds(q[0] + start, q[1] + start, k[0], k[1])
    for i in range(rectangles):
        part = mask[q[0, i] : q[1, i] + 1, k[0, i] : k[1, i] + 1]
        assert np.broadcast_to(may, rectangles)[i] or not part.any(), f"{pattern} hides a pair of {q[:, i]}, {k[:, i]}"
        assert not np.broadcast_to(must, rectangles)[i] or part.all(), f"{pattern} invents one in {q[:, i]}, {k[:, i]}"


def check_text(pattern: Pattern) -> None:
    """The text reads back as the pattern, and says what was read."""
    again = parse(pattern.spec)
    assert again == pattern and hash(again) == hash(pattern)
    assert str(pattern) == pattern.spec == again.spec
