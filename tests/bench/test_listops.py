"""ListOps drawn from a seed: right values, the Long Range Arena's shapes, the same for a seed; and a rehearsal."""

import importlib
import importlib.util
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def trees(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("tasks.trees")


@pytest.fixture
def script(monkeypatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("listops", BENCHMARKS / "listops.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(importlib.import_module("sys").modules, "listops", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


class Steps:
    """A budget of so many steps, whatever time they take: what is learned in it is the same on every machine."""

    seconds = 0.0

    def __init__(self, steps: int):
        self.steps, self.done = steps, 0

    def rest(self) -> "Steps":
        return self

    @property
    def share(self) -> float:
        return self.done / self.steps

    @property
    def left(self) -> int:  # asked for behind each step
        self.done += 1
        return max(0, self.steps - self.done)


def worth(text: str) -> int:
    """The value of a text, by a stack: nothing of the generator's."""
    stack: list = []
    for symbol in text.split():
        if symbol != "]":
            stack.append(int(symbol) if symbol.isdigit() else symbol)
            continue
        values = []
        while isinstance(stack[-1], int):
            values.append(stack.pop())
        operator, values = stack.pop(), sorted(values)
        middle = values[len(values) // 2], values[(len(values) - 1) // 2]
        stack.append(
            {"[MIN": values[0], "[MAX": values[-1], "[MED": sum(middle) // 2, "[SM": sum(values) % 10}[operator]
        )
    (value,) = stack
    return value


def nodes(text: str) -> Iterator[tuple[int, int]]:
    """(level from 1, number of arguments) of every operator of a text; a digit is one of its parent's arguments."""
    open_ones: list[int] = []
    for symbol in text.split():
        if symbol == "]":
            yield len(open_ones), open_ones.pop()
            continue
        if open_ones:
            open_ones[-1] += 1
        if not symbol.isdigit():
            open_ones.append(0)


def test_values_are_right(trees: ModuleType) -> None:
    shape = trees.Shape(shortest=3, longest=300)
    for tokens, value in islice(trees.examples(shape, 1), 2000):
        assert worth(trees.written(tokens)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MED 1 2 ]", 1), ("[MED 9 0 8 ]", 8), ("[MED 1 4 6 9 ]", 5), ("[SM 9 9 9 ]", 7), ("[MIN 4 [MAX 7 2 ] ]", 4),
    ],
)  # fmt: skip
def test_the_evaluator_of_these_tests_knows_the_operators(text: str, value: int) -> None:
    assert worth(text) == value


def test_texts_and_tokens_are_the_same_thing(trees: ModuleType) -> None:
    assert len(trees.SYMBOLS) == 15 and trees.CLOSE in trees.SYMBOLS
    for tokens, _ in islice(trees.examples(trees.Shape(shortest=3, longest=60), 0), 100):
        assert trees.read(trees.written(tokens)) == tokens


def test_lengths_levels_and_arguments_keep_their_limits(trees: ModuleType) -> None:
    shape = trees.Shape(depth=4, most_arguments=5, shortest=10, longest=80)
    drawn = [trees.written(tokens) for tokens, _ in islice(trees.examples(shape, 0), 1500)]
    lengths = [len(text.split()) for text in drawn]
    assert min(lengths) == 10 and max(lengths) <= 80
    found = [node for text in drawn for node in nodes(text)]
    assert {level for level, _ in found} == {1, 2, 3}  # on the fourth stand digits alone
    assert {arguments for _, arguments in found} == {2, 3, 4, 5}


def test_the_defaults_are_the_long_range_arena_s(trees: ModuleType) -> None:
    """Its data have texts of 501 to 1,999 tokens, about 1,060 on the average, and operators that are equally common."""
    drawn = [
        (len(tokens), trees.written(tokens), value) for tokens, value in islice(trees.examples(trees.Shape(), 0), 512)
    ]
    lengths = [length for length, _, _ in drawn]
    assert min(lengths) >= 501 and max(lengths) <= 1999
    assert statistics.mean(lengths) == pytest.approx(1060, abs=60)
    operators = Counter(symbol for _, text, _ in drawn for symbol in text.split() if symbol.startswith("["))
    assert all(count / operators.total() == pytest.approx(0.25, abs=0.02) for count in operators.values())
    levels = [max(level for level, _ in nodes(text)) for _, text, _ in drawn]
    assert max(levels) == 9
    assert {value for _, _, value in drawn} == set(range(10))


def test_a_seed_decides_and_no_text_comes_twice(trees: ModuleType) -> None:
    shape = trees.Shape(shortest=3, longest=8)
    first, again, other = (list(islice(trees.examples(shape, seed), 600)) for seed in (0, 0, 1))
    assert first == again != other
    assert len({tokens for tokens, _ in first}) == 600


def test_processes_draw_the_same_examples(trees: ModuleType) -> None:
    shape = trees.Shape(shortest=3, longest=40)
    alone, together = (list(islice(trees.examples(shape, 0, processes=n), 700)) for n in (1, 2))
    assert alone == together


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth is 0; give at least 1"),
        ({"most_arguments": 1}, "most_arguments is 1; give at least 2"),
        ({"shortest": 9, "longest": 8}, "longest is 8; give at least 9"),
        ({"branching": 1.0}, r"branching is 1\.0; give a chance"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(trees: ModuleType, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trees.Shape(**change)


def test_batches_hold_every_example_once_and_fill_up_behind(trees: ModuleType) -> None:
    batches = importlib.import_module("tasks.batches")
    drawn = list(islice(trees.examples(trees.Shape(shortest=5, longest=60), 0), 200))
    data = batches.Examples.of(drawn, torch.device("cpu"), step=16)
    for seed in (None, 3):
        seen = []
        for batch in data.batches(300, seed=seed):
            width = batch.tokens.shape[1]
            assert (width + 1) % 16 == 0 and (len(batch.tokens) == 1 or batch.tokens.numel() <= 300)
            for row, length, value in zip(batch.tokens, batch.lengths, batch.values, strict=True):
                assert width - 16 < length <= width and not row[length:].any()
                seen.append((bytes(row[:length].tolist()), value.item()))
        assert sorted(seen) == sorted(drawn)
    orders = [torch.cat([batch.values for batch in data.batches(300, seed=seed)]).tolist() for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


KINDS = ("dense", "longformer", "bigbird", "reformer")


@pytest.mark.parametrize("kind", KINDS)
def test_what_fills_a_text_up_is_seen_by_nobody(script: ModuleType, kind: str) -> None:
    """And nothing else is lost: other tokens at the end of the text change the logits."""
    size = script.Size(width=32, heads=2, layers=2, inner=64, keys=24)
    model = script.Classifier(kind, size, vocabulary=15, longest=63, classes=10).eval()
    tokens, lengths = torch.randint(15, (2, 63)), torch.tensor([40, 63])
    padding, text = tokens.clone(), tokens.clone()
    padding[0, 40:] = (padding[0, 40:] + 1) % 15
    text[:, 36:40] = (text[:, 36:40] + 1) % 15

    def logits(given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)  # the hashes'
        return model(given, lengths)

    torch.testing.assert_close(logits(padding)[0], logits(tokens)[0])
    assert not torch.equal(logits(text), logits(tokens))


def test_a_rehearsal_of_everyone(script: ModuleType, tmp_path: Path, capsys) -> None:
    small = "--seconds 4 --examples 40 --test 20 --shortest 5 --longest 30 --keys 24 --width 16 --heads 2 --layers 1"
    assert script.main([*small.split(), "--tokens", "300", "--processes", "1", "--folder", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "listops.json").read_text())
    assert [score["attention"] for score in record["scores"]] == list(KINDS)
    assert all(score["fault"] is None and score["steps"] for score in record["scores"])
    page = (tmp_path / "listops.md").read_text()
    assert all(f"| {kind} | " in page for kind in KINDS)
    assert page.strip() in capsys.readouterr().out


def test_one_that_fails_leaves_the_others_their_results(script: ModuleType, tmp_path: Path, monkeypatch) -> None:
    def broken(size, layer):
        raise RuntimeError("no kernel")

    monkeypatch.setitem(script.ATTENTIONS, "longformer", broken)
    small = "--seconds 2 --examples 20 --test 10 --shortest 5 --longest 30 --width 16 --heads 2 --layers 1"
    script.main([*small.split(), "--only", "longformer", "dense", "--processes", "1", "--folder", str(tmp_path)])
    broken_one, sound = json.loads((tmp_path / "listops.json").read_text())["scores"]
    assert broken_one["fault"] == "RuntimeError: no kernel" and sound["steps"]
    assert "| longformer | failed: RuntimeError: no kernel |" in (tmp_path / "listops.md").read_text()


def test_one_that_breaks_off_keeps_what_was_known_of_it(script: ModuleType, tmp_path: Path, monkeypatch) -> None:
    learn, turns = script.Learner.learn, []

    def breaking(learner, seconds, budget):
        turns.append(learner)
        if len(turns) == 3:
            raise RuntimeError("no memory")
        learn(learner, 0.0, budget)

    monkeypatch.setattr(script.Learner, "learn", breaking)
    monkeypatch.setattr(script, "Budget", lambda seconds: Steps(12))  # a report comes after the second turn
    small = "--seconds 2 --examples 20 --test 10 --shortest 5 --longest 30 --width 16 --heads 2 --layers 1"
    script.main([*small.split(), "--only", "dense", "--processes", "1", "--folder", str(tmp_path)])
    (score,) = json.loads((tmp_path / "listops.json").read_text())["scores"]
    assert score["fault"] == "RuntimeError: no memory"
    assert bool(score["steps"]) == (
        "- dense broke off: RuntimeError: no memory" in (tmp_path / "listops.md").read_text()
    )


def test_shallow_trees_are_learned(script: ModuleType, trees: ModuleType) -> None:
    """One operator over few digits: far better than the commonest value after a few hundred steps."""
    drawn = list(islice(trees.examples(trees.Shape(depth=2, most_arguments=3, shortest=4, longest=5), 0), 1500))
    batches, cpu = importlib.import_module("tasks.batches"), torch.device("cpu")
    data, size = batches.Examples.of(drawn, cpu, step=8), script.Size(32, 2, 2, 64, keys=24)
    learning = script.Learning(learning_rate=4e-3, warmup_steps=20, tokens=2000)
    learner, budget = script.Learner("dense", size, learning, data), Steps(250)
    script.learn_in_turns({"dense": learner}, budget, {}, lambda: None)
    score = script.score_of(learner, data)
    assert 200 < score.steps <= 250
    assert score.accuracy > 0.35 and score.loss < 1.9
