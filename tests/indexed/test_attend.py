"""`attend_indexed` and `attend_latent` on the CPU: their definition, what hides, what repeats, what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest
import torch
from torch import Tensor

from gossamer import Causal, Unsupported, attend
from gossamer.indexed import Selection, attend_indexed, attend_latent
from gossamer.kernels.tiled.indexed_layouts import ELEMENTS
from tests.indexed_checks import (
    CASES,
    Case,
    check_definition,
    check_hidden_numbers,
    check_repeatable,
    check_support,
    draw,
    ours,
    run,
)

HALVES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_definition(name: str) -> None:
    check_definition(CASES[name], torch.float64)


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("name", ["many keys", "sinks", "latents", "blocks, causal"])
def test_other_dtypes_err_no_more_than_the_definition_in_them(name: str, dtype: torch.dtype) -> None:
    check_definition(CASES[name], dtype)


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_chosen_are_seen(name: str) -> None:
    check_support(CASES[name])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.tidy])
def test_what_nobody_sees_may_hold_anything(name: str) -> None:
    case = CASES[name]
    few = {"chosen": min(case.chosen, 3 if case.block > 1 else 7), "keys": max(case.keys, 12 * case.block)}
    check_hidden_numbers(replace(case, queries=min(case.queries, 5), **few))


@pytest.mark.parametrize("name", CASES)
def test_results_repeat_to_the_bit(name: str) -> None:
    check_repeatable(CASES[name], torch.float32)


@pytest.mark.parametrize("name", ["many keys", "latents, causal", "blocks, causal", "mask"])
def test_blocks_of_queries_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(CASES[name])
    whole = run(ours, problem)
    monkeypatch.setitem(ELEMENTS, "cpu", 1)
    for result, x in run(ours, problem).items():
        torch.testing.assert_close(x, whole[result], rtol=1e-12, atol=1e-12, msg=result)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("extra", [0, 5])
def test_all_keys_chosen_is_dense_attention(heads: tuple[int, int], extra: int) -> None:
    """As many numbers as keys, or more, in any order: causal attention itself, and its gradients."""
    q = torch.randn(2, heads[0], 20, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, heads[1], 20, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    indices = torch.rand(2, 20, 20).argsort(-1)
    selection = Selection(torch.cat([indices, indices[..., :extra]], -1), causal=True)
    found, wanted = (
        attend_indexed(q, k, v, selection, return_lse=True),
        attend(q, k, v, Causal(), return_lse=True),
    )
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(x[0].sin().sum() + x[1].sum(), (q, k, v)) for x in (found, wanted)]
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["causal", "latents, causal", "blocks, causal", "tidy"])
def test_the_past_does_not_know_the_future(name: str) -> None:
    """Although later keys are chosen."""
    problem = draw(CASES[name], torch.float32)
    case = problem.case
    cut = case.keys - case.queries + 30  # the keys from here on stand after query 29
    changed = {n: x.clone() for n, x in problem.inputs.items() if n in ("k", "v")}
    for x in changed.values():
        x[:, :, cut:] = 1e4 * torch.randn_like(x[:, :, cut:])
    before, after = (run(ours, p)["out"] for p in (problem, replace(problem, **changed)))
    assert torch.equal(before[:, :, :30], after[:, :, :30])
    assert not torch.equal(before[:, :, 30:], after[:, :, 30:])


def test_order_and_repetition_change_no_result() -> None:
    for keys in (60, 700):
        problem = draw(replace(CASES["one choice"], keys=keys), torch.float32)
        indices = problem.selection.indices
        shuffled = torch.cat([indices, indices[..., :3]], -1)[..., torch.randperm(indices.shape[-1] + 3)]
        found = run(ours, replace(problem, selection=Selection(shuffled)))
        for name, x in run(ours, problem).items():
            torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-6)


def test_fewer_are_chosen_than_there_is_room_for() -> None:
    """-1 in place of what is missing: the rest is attention to as many as there are."""
    problem = draw(replace(CASES["one choice"], tidy=True), torch.float64)
    indices = problem.selection.indices
    padded = torch.cat([indices, torch.full_like(indices, -1)], -1)
    found = run(ours, replace(problem, selection=Selection(padded)))
    for name, x in run(ours, problem).items():
        torch.testing.assert_close(found[name], x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("keys", [9, 300])
def test_the_gradient_is_the_derivative(latent: bool, block: int, keys: int) -> None:
    case = Case(
        heads=2, key_heads=1, queries=3, keys=keys, width=4, value_width=3, chosen=3, batch=1, block=block, causal=True,
        sinks=True, latent=latent,
    )  # fmt: skip
    problem = draw(case)
    chosen = problem.selection.indices % 3
    problem = replace(problem, selection=replace(problem.selection, indices=chosen.clamp(max=2)))

    def attended(q: Tensor, k: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        v, sinks = (None, *rest) if latent else rest
        return ours(problem, q, k, v, sinks)

    assert torch.autograd.gradcheck(attended, [x.requires_grad_() for x in problem.inputs.values()])


@pytest.mark.parametrize("sinks", [None, [0.5, -torch.inf]])
def test_who_sees_nothing_gives_zeros(sinks: list[float] | None) -> None:
    logits = None if sinks is None else torch.tensor(sinks)
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    for indices in (torch.empty(1, 5, 0, dtype=torch.int64), torch.full((1, 5, 3), -1), torch.full((1, 5, 3), 7)):
        out, lse = attend_indexed(q, k, v, Selection(indices), sinks=logits, return_lse=True)
        assert not out.any()
        assert torch.equal(lse, torch.tensor([-torch.inf] * 2 if sinks is None else sinks)[:, None].expand(1, 2, 5))
        grads = torch.autograd.grad([out, lse], (q, k, v), [torch.full_like(out, 3.0), torch.full_like(lse, 2.0)])
        assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 0, 0)], ids=str)
def test_nothing_is_attended_from_nothing(shape: tuple[int, ...]) -> None:
    batch, queries, keys = shape
    q, k = torch.randn(batch, 2, queries, 4, requires_grad=True), torch.randn(batch, 2, keys, 4, requires_grad=True)
    out = attend_indexed(q, k, k, Selection(torch.zeros(batch, queries, 2, dtype=torch.int32)))
    out.sum().backward()
    assert out.shape == q.shape and not k.grad.any()


@pytest.mark.parametrize("name", ["many keys", "causal", "blocks, causal", "latents"])
def test_strides_do_not_matter(name: str) -> None:
    problem = draw(CASES[name], torch.float32)
    wanted = run(ours, problem)

    def spread(x: Tensor) -> Tensor:
        """The same numbers, its heads inside its positions and its columns apart."""
        wide = torch.full((*x.shape[:1], x.shape[2], x.shape[1], 2 * x.shape[3]), torch.nan, dtype=x.dtype)
        wide[..., ::2] = x.transpose(1, 2)
        return wide[..., ::2].transpose(1, 2)

    changed = {n: spread(x) for n, x in problem.inputs.items() if n != "sinks"}
    indices = problem.selection.indices
    selection = replace(problem.selection, indices=indices.repeat_interleave(2, -1)[..., ::2])
    given = replace(problem, selection=selection, grad_out=spread(problem.grad_out))
    named = {n: x.requires_grad_() for n, x in changed.items()}
    v = named["k"][..., : given.case.value_width] if given.v is None else named["v"]
    out, lse = ours(given, named["q"], named["k"], v, given.sinks)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    grads = torch.autograd.grad([out, finite], list(named.values()), [given.grad_out, given.grad_lse.to(lse.dtype)])
    for name_, x in zip(("out", *(f"d{n}" for n in named)), (out, *grads), strict=True):
        torch.testing.assert_close(x, wanted[name_], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["one choice", "latents, causal"])
def test_it_compiles_into_one_graph(name: str) -> None:
    problem = draw(CASES[name], torch.float32)
    named = {n: x.requires_grad_() for n, x in problem.inputs.items()}

    def attended(indices: Tensor, q: Tensor, k: Tensor, v: Tensor | None, sinks: Tensor | None) -> Tensor:
        given = replace(problem, selection=Selection(indices, causal=problem.case.causal))
        out, lse = ours(given, q, k, v, sinks)
        return out.sin().sum() + lse.masked_fill(lse == -torch.inf, 0.0).sum()

    given = problem.selection.indices, named["q"], named["k"], named.get("v"), named.get("sinks")
    compiled = torch.compile(attended, fullgraph=True, backend="aot_eager")
    found = [torch.autograd.grad(f(*given), list(named.values())) for f in (compiled, attended)]
    assert all(map(torch.equal, *found))


@torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
def test_other_lengths_take_the_same_graph() -> None:
    def attended(q: Tensor, k: Tensor, indices: Tensor) -> Tensor:
        out, lse = attend_indexed(q, k, k, Selection(indices, causal=True), return_lse=True)
        latent = attend_latent(q, k[:, 0], Selection(indices), value_width=5)
        return out.sin().sum() + lse.clamp(min=-5).sum() + latent.sum()

    compiled = torch.compile(attended, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries, keys in ((5, 9), (6, 30), (17, 700), (33, 65)):
        q, k = torch.randn(2, 4, queries, 8, requires_grad=True), torch.randn(2, 1, keys, 8, requires_grad=True)
        indices = torch.randint(keys, (2, queries, 3))
        grads = [torch.autograd.grad(f(q, k, indices), (q, k)) for f in (compiled, attended)]
        assert all(map(torch.equal, *grads))


def test_autocast_decides_the_dtype() -> None:
    q, k, v = torch.randn(3, 1, 2, 50, 8)
    selection = Selection(torch.randint(50, (1, 50, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_indexed(q, k, v, selection)
        latent = attend_latent(q, k[:, 0], selection, value_width=8)
    assert torch.equal(found, attend_indexed(q.bfloat16(), k.bfloat16(), v.bfloat16(), selection))
    assert latent.dtype == torch.bfloat16


@pytest.mark.parametrize("keys", [30, 700])
def test_dropout_drops_the_same_pairs_backward_as_forward(keys: int) -> None:
    """The gradient of a sum over v counts what each value was weighted with: v times it is the output again."""
    q = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    k, v = torch.randn(1, 2, keys, 8, dtype=torch.float64), torch.randn(1, 2, keys, 8, dtype=torch.float64)
    selection, v = Selection(torch.randint(keys, (1, 9, 12))), v.requires_grad_()
    whole = attend_indexed(q, k, v, selection)
    dropped = attend_indexed(q, k, v, selection, dropout=0.5)
    (grad,) = torch.autograd.grad(dropped.sum(), v)
    assert not torch.allclose(dropped, whole)
    torch.testing.assert_close((grad * v).sum(), dropped.sum())
    many = torch.stack([attend_indexed(q, k, v, selection, dropout=0.5) for _ in range(400)]).mean(0)
    assert (many - whole).abs().max() < 0.5 * whole.abs().max()


def drawn_case(seed: int) -> Case:
    """Any sizes and options; the same for the same seed."""
    chance = random.Random(seed)
    groups, block = chance.choice([1, 1, 2, 3]), chance.choice([1, 1, 1, 2, 5, 16, 20])
    latent = groups == 1 and chance.random() < 0.4
    width = chance.randint(1, 40)
    return Case(
        heads=groups * chance.choice([1, 2, 5]),
        key_heads=groups,
        queries=chance.randint(1, 30),
        keys=chance.choice([1, 2, 17, 64, 65, chance.randint(1, 900)]),
        width=width,
        value_width=chance.randint(1, width) if latent else chance.randint(1, 40),
        chosen=chance.randint(1, 12),
        runs=chance.choice([None, 1, groups]),
        block=block,
        causal=chance.random() < 0.5,
        mask=chance.random() < 0.2,
        sinks=chance.random() < 0.3,
        latent=latent,
        softcap=None if latent or chance.random() < 0.7 else 2.0,
        batch=chance.choice([1, 2]),
        tidy=chance.random() < 0.3,
        dtype=chance.choice([torch.int32, torch.int64]),
    )


@pytest.mark.parametrize("seed", [*range(40), *(pytest.param(n, marks=pytest.mark.slow) for n in range(40, 1000))])
def test_any_problem_is_the_definition(seed: int) -> None:
    case = drawn_case(seed)
    check_definition(case, torch.float64)
    check_support(case)


FAULTS = {
    "the future is seen": ("selection", "visible &= chosen <=", "visible &= chosen - 1 <=", "causal, far"),
    "the future stands in the strip": ("selection", "device=seen.device) <=", "device=seen.device) - 1 <=", "causal"),
    "a key counts as often as it is named": ("selection", "visible = new &", "visible = (new | True) &", "many keys"),
    "a mask is not looked at": ("selection", "visible if allowed is None", "visible if True", "mask"),
    "the largest score is not subtracted": ("indexed", "(block.scores - peak).exp_()", "block.scores.exp_()", "loud"),
    "a sink counts nothing": ("indexed", "total + (block.sink - peak).exp()", "total", "sinks"),
    "the log-sum-exp has no gradient": ("indexed", "delta - come.grad_lse[..., None]", "delta", "one choice"),
    "values give latents no gradient": (
        "indexed",
        "of_keys[..., : given.value_width] += of_values",
        "of_keys[..., : given.value_width] += 0.0 * of_values",
        "latents",
    ),
    "the cap has no slope": (
        "indexed",
        "if not softcap:\n            return scale\n",
        "if True:\n            return scale\n",
        "softcap",
    ),
    "what nobody sees is multiplied": (
        "layouts",
        "masked_fill(unseen, 0.0)",
        "masked_fill(unseen & False, 0.0)",
        "hidden",
    ),
    "what nobody sees is gathered": (
        "layouts",
        "given.v[sequence, head, chosen].masked_fill_(~visible[..., None], 0.0)",
        "given.v[sequence, head, chosen]",
        "hidden, far",
    ),
    "keys of the first sequence have all gradients": (
        "layouts",
        "lane = torch.arange(batch",
        "lane = 0 * torch.arange(batch",
        "many keys",
    ),
}
FOUND_BY = {
    "causal, far": partial(check_support, replace(CASES["causal"], keys=700, chosen=5)),
    "loud": partial(check_definition, replace(CASES["one choice"], scale=1000.0), torch.float64),
    "hidden": partial(check_hidden_numbers, replace(CASES["one choice"], queries=5)),
    "hidden, far": partial(check_hidden_numbers, replace(CASES["many keys"], queries=5)),
}
MODULES = {
    "selection": "selectors.selection",
    "indexed": "kernels.tiled.indexed",
    "layouts": "kernels.tiled.indexed_layouts",
}


def found(check: str) -> None:
    FOUND_BY.get(check, partial(check_definition, CASES.get(check, Case()), torch.float64))()


@pytest.mark.parametrize("check", sorted({fault[3] for fault in FAULTS.values()}))
def test_the_sound_road_passes(check: str) -> None:
    found(check)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, sound, wrong, check = FAULTS[name]
    module = import_module(f"gossamer.{MODULES[where]}")
    text = Path(module.__file__).read_text()
    assert text.count(sound) == 1
    faulty = dict(vars(module))
    exec(compile(text.replace(sound, wrong), module.__file__, "exec"), faulty)
    for kind in (x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__):
        for attribute, value in vars(faulty[kind.__name__]).items():
            if isinstance(value, FunctionType | classmethod) and not attribute.startswith("__"):
                monkeypatch.setattr(kind, attribute, value)
    with pytest.raises(AssertionError):
        found(check)


WRONG = {
    "indices is torch.float32 of shape (1, 1, 9, 3) on cpu; give int32 or int64": {"indices": torch.zeros(1, 9, 3)},
    "indices is torch.int64 of shape (1, 1, 8, 3)": {"indices": torch.zeros(1, 8, 3, dtype=torch.int64)},
    "indices is torch.int64 of shape (1, 3, 9, 3)": {"indices": torch.zeros(1, 3, 9, 3, dtype=torch.int64)},
    "mask is of shape (1, 9, 20)": {"mask": torch.ones(1, 9, 20)},
    "mask is of shape (1, 1, 9, 19)": {"mask": torch.ones(1, 1, 9, 19)},
    "block_size is 0; give an integer": {"block_size": 0},
    "scale is nan": {"scale": float("nan")},
    "dropout is 1.0": {"dropout": 1.0},
    "softcap is 0.0": {"softcap": 0.0},
    "sinks has shape (3,)": {"sinks": torch.zeros(3)},
    "q has 4 heads and k has 3": {"k": torch.zeros(1, 3, 20, 8), "v": torch.zeros(1, 3, 20, 8)},
    "v is torch.float64": {"v": torch.zeros(1, 2, 20, 8, dtype=torch.float64)},
    "q is a list": {"q": [0.0]},
    "selection is a list": {"selection": [0]},
    "k has shape (1, 2, 0, 8); give at least 1 key": {"k": torch.zeros(1, 2, 0, 8), "v": torch.zeros(1, 2, 0, 8)},
    "backend is 'fast'; give one of: ": {"backend": "fast"},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_named(said: str) -> None:
    given = {"q": torch.zeros(1, 4, 9, 8), "k": torch.zeros(1, 2, 20, 8), "v": torch.zeros(1, 2, 20, 8)}
    chosen = {"indices": torch.zeros(1, 9, 3, dtype=torch.int64)} | WRONG[said]
    given["selection"] = Selection(**{n: chosen.pop(n) for n in ("indices", "mask", "block_size") if n in chosen})
    with pytest.raises(ValueError) as raised:
        attend_indexed(**given | chosen)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latents": torch.zeros(1, 1, 20, 8)}, "latents has shape (1, 1, 20, 8); give [batch, length, width]"),
        ({"value_width": 9}, "value_width is 9; give an integer from 1 to the 8 of a latent"),
        ({"value_width": 0}, "value_width is 0"),
        ({"value_width": True}, "value_width is True"),
    ],
)
def test_latents_that_do_not_fit_are_named(change: dict[str, object], said: str) -> None:
    selection = Selection(torch.zeros(1, 9, 3, dtype=torch.int64))
    given = {"q": torch.zeros(1, 4, 9, 8), "latents": torch.zeros(1, 20, 8), "value_width": 6} | change
    with pytest.raises(ValueError) as raised:
        attend_latent(selection=selection, **given)
    assert str(raised.value).startswith(said)


def test_unsupported_is_a_value_error() -> None:
    assert issubclass(Unsupported, ValueError)
