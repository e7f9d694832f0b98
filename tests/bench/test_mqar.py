"""Recall of pairs: its texts, that it is learned by whoever sees the keys, and what is written of it."""

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
    spec = importlib.util.spec_from_file_location("mqar", BENCHMARKS / "mqar.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mqar", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_key_comes_again_and_its_value_is_asked_for(script: ModuleType) -> None:
    tokens, targets = script.Recall(length=64, pairs=8, vocabulary=64).draw(50, seeded(0))
    assert tokens.shape == targets.shape == (50, 64)
    for text, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
        values = dict(zip(text[0:16:2], text[1:16:2], strict=True))
        again = {place: text[place] for place in range(16, 64) if text[place]}
        assert len(values) == 8 and all(0 < key < 32 <= value < 64 for key, value in values.items())
        assert sorted(again.values()) == sorted(values) and all(place % 2 == 0 for place in again)
        assert {place: value for place, value in enumerate(asked) if value != -100} == {
            place: values[key] for place, key in again.items()
        }


def test_keys_come_again_soon(script: ModuleType) -> None:
    """The first key's place is drawn with p(g) ~ g^-0.99, the others' among what it leaves."""
    task = script.Recall(length=132, pairs=2, vocabulary=64)
    tokens, _ = task.draw(20_000, seeded(0))
    place = (tokens[:, 4:] == tokens[:, :1]).int().argmax(1) // 2
    weights = torch.arange(1, 65, dtype=torch.float64) ** -0.99
    expected = weights / weights.sum()
    found = torch.bincount(place, minlength=64) / 20_000
    assert (found - expected).abs().max() < 4 * (0.21 * 0.79 / 20_000) ** 0.5  # four deviations of the commonest


def test_noise_fills_what_is_not_asked_for(script: ModuleType) -> None:
    plain, noisy = (script.Recall(64, 8, 64, noise=noise).draw(50, seeded(0)) for noise in (False, True))
    assert torch.equal(plain.targets, noisy.targets)
    assert torch.equal(plain.tokens[plain.tokens > 0], noisy.tokens[plain.tokens > 0])
    assert len(noisy.tokens[plain.tokens == 0].unique()) == 64


def test_other_seeds_are_other_texts(script: ModuleType) -> None:
    first, again, other = (script.Recall(64, 8).draw(4, seeded(seed)).tokens for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("sizes", "message"), [((63, 4), "length is 63"), ((64, 17), "4 . pairs=68"), ((64, 8, 16), "has 7 keys")]
)
def test_texts_that_cannot_be_are_refused(script: ModuleType, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        script.Recall(*sizes)


def test_no_mixer_sees_what_comes(script: ModuleType) -> None:
    """Hashing is left out: how full a chunk is, and so who meets in it, depends on every token of a text."""
    for mixer in sorted(set(script.MIXERS) - {"lsh"}):
        torch.manual_seed(0)
        model = script.Recaller(mixer, script.Sight(32, 2, 16), vocabulary=64, longest=64).eval()
        tokens = torch.randint(64, (2, 64))
        changed = tokens.clone()
        changed[:, 40:] = (changed[:, 40:] + 1) % 64
        before, after = model(tokens), model(changed)
        assert torch.allclose(before[:, :40], after[:, :40], atol=1e-5), mixer
        assert not torch.allclose(before[:, 40:], after[:, 40:], atol=1e-5), mixer


@pytest.mark.slow
def test_it_is_learned_by_who_sees_the_keys(script: ModuleType) -> None:
    """Dense attention finds nearly all, and so does an indexer's; a window of as many keys sees few of the pairs."""
    trained = [script.Recall(16, 2, 64), script.Recall(32, 8, 64)]
    learning = script.Learning(learning_rate=1e-2, warmup_steps=20, tokens=2048)
    found = {}
    for mixer in ("dense", "window", "dsa"):
        learner = script.Learner(mixer, script.Sight(32, 1, 8), trained, learning, torch.device("cpu"))
        for _ in range(400):
            learner._step(0.0)
        found[mixer] = learner._found()[-1]
    assert found["dense"] > 0.95 and found["dsa"] > 0.9 and found["window"] < 0.5


def test_a_rehearsal(script: ModuleType, tmp_path: Path, capsys) -> None:
    small = "--seconds 0.5 --trained 16:2 --tested 16:2 32:4 --keys 16 --width 16 --tokens 64 --test 4 --vocabulary 32"
    assert script.main([*small.split(), "--folder", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "mqar.json").read_text())
    assert [score["mixer"] for score in record["scores"]] == list(script.MIXERS)
    assert all(score["fault"] is None and len(score["right"]) == 2 for score in record["scores"])
    assert (tmp_path / "mqar.md").read_text().strip() in capsys.readouterr().out
    assert (tmp_path / "mqar.png").stat().st_size > 0
