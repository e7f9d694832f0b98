"""The script's rehearsal, its page, what it keeps of an earlier call, and that wrong choices are not timed."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("h200_dsa", FOLDER / "h200_dsa.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "dsa"]:
        del sys.modules[name]


def test_a_rehearsal_measures_every_part_and_keeps_what_it_does_not_run(script, tmp_path, capsys):
    from dsa.choices import BLOCKS

    script.main(["--small", "--folder", str(tmp_path), "--commit", "abc"])
    page = (tmp_path / "h200_dsa.md").read_text()
    assert page.strip() in capsys.readouterr().out and "commit abc" in page
    figures = json.loads((tmp_path / "h200_dsa.json").read_text())["figures"]
    found = {(each["section"], each["case"], each["contender"]) for each in figures if each["absence"] is None}
    both = "forward", "backward"
    parts = {"latents": both, "index": ("bf16", "fp8"), "layer": both, "loss": ("chosen keys", "all keys")}
    assert {(section, case, "gossamer") for section, cases in parts.items() for case in cases} <= found
    blocks = {("blocks", f"{kind}, {way}", "gossamer") for kind in BLOCKS for way in ("forward", "backward")}
    assert blocks <= found
    assert {each["contender"] for each in figures if each["absence"]} >= {"FlexAttention"}
    assert ("index", "bf16", "PyTorch, weighted") in found and ("index", "bf16", "PyTorch, products") in found
    assert "96 tokens: over chosen keys the loss adds " in page
    script.main(["--small", "--only", "latents", "--folder", str(tmp_path), "--commit", "def"])
    page = (tmp_path / "h200_dsa.md").read_text()
    assert "commit abc" in page and "commit def" in page


def test_operations_are_those_of_pairs_that_are_seen(script):
    problem = replace(script.SMALL, tokens=50, chosen=20)
    assert problem.pairs == sum(min(query + 1, 20) for query in range(50))
    assert (problem.random_choice() >= 0).sum() == problem.pairs
    assert problem.all_pairs == 50 * 51 // 2


@pytest.mark.parametrize("wrong", ["a lower score", "the future", "one twice"])
def test_a_wrong_choice_is_found(script, wrong):
    from dsa.index import chosen, drawn, fault

    torch.manual_seed(0)
    problem = script.SMALL
    inputs = drawn(problem)
    found = chosen(inputs, problem, "as given")
    assert fault(found, inputs, problem, "as given") is None
    last, mine = problem.tokens - 1, found[0, problem.tokens - 1]
    left = next(key for key in range(problem.tokens) if key not in mine.tolist())
    mine[3] = {"a lower score": left, "the future": last + 1, "one twice": mine[4].item()}[wrong]
    assert fault(found, inputs, problem, "as given") is not None


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("wrong", ["its queries", "its keys", "its weights", "the losses"])
def test_a_wrong_lesson_is_found(script, wrong, chosen, monkeypatch):
    from dsa import loss

    torch.manual_seed(0)
    problem = script.SMALL
    lesson = loss.lesson_of(problem)
    lesson = lesson if chosen else replace(lesson, chosen=None)
    gradients = lesson.results()[1:]
    assert loss.largest_error(lesson, gradients, problem) < 0.01
    at = ("its queries", "its keys", "its weights", "the losses").index(wrong)
    if at < 3:
        gradients[at].mul_(1.02)
    else:
        right = loss.indexer_loss
        monkeypatch.setattr(loss, "indexer_loss", lambda *given, **rest: 1.02 * right(*given, **rest))
    assert loss.largest_error(lesson, gradients, problem) > 0.015


def test_all_pairs_of_a_long_text_are_not_measured(script, monkeypatch):
    from dsa import loss

    monkeypatch.setattr(loss, "LONGEST_OVER_ALL", 95)
    chosen, every = loss.loss_figures(script.SMALL)
    assert chosen.seconds is not None and every.seconds is None and "beyond 95 tokens" in every.absence


def test_the_promises_are_those_of_the_shapes_that_users_have(script):
    assert script.TOKENS == (32_768, 131_072)
    problem = script.Problem(32_768, torch.device("cpu"))
    assert (problem.heads, problem.chosen, problem.index_heads, problem.index_width) == (128, 2048, 64, 128)


@pytest.mark.parametrize("kind", ["realistic", "random"])
def test_blocks_are_chosen_as_the_page_says(script, kind):
    from dsa.choices import BLOCKS, pairs_of, table_of

    problem = replace(script.SMALL, tokens=250, grouped=script.Grouped(4, 2, 16, block=16, chosen=4))
    chosen = BLOCKS[kind](problem)
    assert torch.equal(chosen, BLOCKS[kind](problem))
    table = table_of(problem, chosen)
    query = torch.arange(250)
    own, visible = query // 16, torch.arange(16) <= query[:, None] // 16
    assert not (table & ~visible).any()
    assert (table.sum(-1) == (own + 1).clamp(max=4)).all() and ((chosen >= 0).sum(-1) == table.sum(-1)).all()
    always = {"realistic": (0 * own, own, (own - 1).clamp(min=0)), "random": (own,)}[kind]
    assert all(table[:, query, block].all() for block in always)
    seen = table.repeat_interleave(16, -1)[..., :250] & (query <= query[:, None])
    assert pairs_of(problem, chosen) == 2 * seen.sum()
    new = (table[:, 1:] & ~table[:, :-1])[:, 200:].sum() / (table.shape[0] * 49)
    assert (new < 0.5) == (kind == "realistic")


def test_flex_attention_is_given_what_was_chosen(script):
    from dsa.blocks import flex_blocks
    from dsa.choices import realistic_blocks, table_of
    from torch.nn.attention.flex_attention import create_mask

    problem = replace(script.SMALL, tokens=512, grouped=script.Grouped(4, 2, 16, block=64, chosen=3))
    table = table_of(problem, realistic_blocks(problem))
    mask = flex_blocks(problem, table)
    seen = table.repeat_interleave(64, -1) & torch.ones(512, 512, dtype=torch.bool).tril()
    seen = seen.repeat_interleave(2, 0)[None]
    assert torch.equal(create_mask(mask.mask_mod, 1, 4, 512, 512, "cpu"), seen)
    tiles = seen.unflatten(2, (-1, 128)).unflatten(-1, (-1, 128))
    full, some = tiles.all(-1).all(3), tiles.any(-1).any(3)
    assert torch.equal(mask.to_dense().bool(), some)
    assert torch.equal(mask.full_kv_num_blocks, full.sum(-1).int())
    for rows, count, numbers in zip(
        full.flatten(0, 2), mask.full_kv_num_blocks.flatten(), mask.full_kv_indices.flatten(0, 2), strict=True
    ):
        assert sorted(numbers[:count].tolist()) == rows.nonzero()[:, 0].tolist()


def test_wrong_blocks_are_not_timed(script, monkeypatch):
    from dsa import blocks

    attend = blocks._ours

    def wrong(problem, chosen, q, k, v):
        return attend(problem, chosen, q, k, v.roll(1, 2))

    assert all(each.absence is None for each in blocks.block_figures(script.SMALL) if each.contender == "gossamer")
    monkeypatch.setattr(blocks, "_ours", wrong)
    ours = [each for each in blocks.block_figures(script.SMALL) if each.contender == "gossamer"]
    assert len(ours) == 4 and all("off" in each.absence and each.seconds is None for each in ours)


def test_every_section_has_words_and_blocks_have_promises(script):
    from dsa.page import WORDS

    assert set(WORDS) == set(script.SECTIONS)
    figure = script.Figure("blocks", "realistic, forward", "gossamer", 32_768, seconds=1e-3, operations=262.1e9)
    (kept,) = script.promises([figure, replace(figure, contender="FlexAttention")])
    (broken,) = script.promises([replace(figure, seconds=1.01e-3)])
    assert kept.kept and not broken.kept and not list(script.promises([replace(figure, case="random, forward")]))
