"""The duplication task: its texts, that it is learned, and what is written of it."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("duplication", BENCHMARKS / "duplication.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "duplication", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def task(script: ModuleType):
    return script.Task(
        word=15, symbols=15, width=64, heads=2, chunk=8, batch=32, learning_rate=4e-3, warmup_steps=20,
        precision="fp32", seed=0,
    )  # fmt: skip


class Steps:
    """A budget of so many steps, whatever time they take: what is learned in it is the same on every machine."""

    def __init__(self, steps: int):
        self.steps, self.done = steps, 0

    def rest(self) -> "Steps":
        return self

    @property
    def share(self) -> float:  # asked for once a step
        self.done += 1
        return (self.done - 1) / self.steps

    @property
    def left(self) -> int:
        return self.steps - self.done


def test_a_word_stands_twice_and_its_second_time_is_asked_for(script: ModuleType) -> None:
    tokens, targets = script.copies(64, 11, 5, torch.Generator().manual_seed(0))
    assert tokens.shape == targets.shape == (64, 24)
    assert torch.equal(tokens[:, :12], tokens[:, 12:])
    assert not tokens[:, 0].any() and set(tokens[:, 1:12].unique().tolist()) == {1, 2, 3, 4, 5}
    assert (targets[:, :12] == -100).all() and targets[:, -1].eq(-100).all()
    assert torch.equal(targets[:, 12:-1], tokens[:, 13:])  # the token after each one


def test_other_seeds_are_other_words(script: ModuleType) -> None:
    first, again, other = (script.copies(4, 11, 127, torch.Generator().manual_seed(n)).tokens for n in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_model_is_the_paper_s(script: ModuleType) -> None:
    config = script.shape(511, 127, width=256, heads=4, chunk=64, rounds=4)
    assert (config.hidden_size, config.feed_forward_size, config.num_attention_heads) == (256, 256, 4)
    assert config.attn_layers == ("lsh",) and config.is_decoder and config.lsh_rules == "paper"
    assert (config.num_buckets, config.lsh_attn_chunk_length, config.num_hashes) == (32, 64, 4)  # m = 2 L / buckets


def test_full_attention_is_what_many_rounds_come_to(script: ModuleType, task) -> None:
    """The evaluation's two roads meet: with one bucket in each round, hashing hides nothing."""
    torch.manual_seed(0)
    config = script.shape(15, 15, width=64, heads=2, chunk=8, rounds=4)
    model = script.Reformer(config, head="lm").eval()
    tokens = script.copies(3, 15, 15, torch.Generator().manual_seed(0)).tokens
    full = script.with_rounds(model, "full", 15, 15, chunk=8)(tokens).logits
    many = script.with_rounds(model, 200, 15, 15, chunk=8)(tokens).logits
    few = script.with_rounds(model, 1, 15, 15, chunk=8)(tokens).logits
    assert (many - full).abs().max() < 0.3 * (few - full).abs().max()


def test_it_is_learned_and_more_rounds_find_more(script: ModuleType, task) -> None:
    cpu = torch.device("cpu")
    model = script.begun(task, 4, cpu)
    row = script.train(task, model, 4, Steps(150))
    *_, right = script.evaluate(task, model, words=64)
    assert row.loss < 0.5 and right["8"] > 0.9
    assert right["8"] >= right["4"] >= right["1"]


def test_a_rehearsal(script: ModuleType, tmp_path: Path, capsys) -> None:
    small = "--seconds 2 --trained 1 full --word 7 --symbols 5 --width 16 --heads 2 --chunk 4 --batch 4 --words 8"
    assert script.main([*small.split(), "--folder", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "duplication.json").read_text())
    assert [row["trained"] for row in record["rows"]] == [1, "full"]
    assert all(set(row["right"]) == {"full", "8", "4", "2", "1"} for row in record["rows"])
    page = (tmp_path / "duplication.md").read_text()
    assert "| full attention, the paper | 150,000 | – | – | 100.0 | 94.8 | 92.5 | 76.9 | 52.5 |" in page
    assert page.strip() in capsys.readouterr().out


def test_the_learning_rate_rises_by_steps_and_falls_by_time(script: ModuleType) -> None:
    rates = [script.rate(step, 0.0, highest=2.0, warmup_steps=4) for step in (1, 2, 4, 9)]
    assert rates == [0.5, 1.0, 2.0, 2.0]
    assert script.rate(9, 0.5, highest=2.0, warmup_steps=4) == pytest.approx(1.0)
    assert script.rate(9, 1.0, highest=2.0, warmup_steps=4) == pytest.approx(0.0)
    assert script.Budget(0.0).share == 1.0 and script.Budget(100.0).share < 0.01
