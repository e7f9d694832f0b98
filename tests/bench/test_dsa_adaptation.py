"""From dense to sparse on a few kilobytes: the stages do what they say, and what is found is written."""

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
    spec = importlib.util.spec_from_file_location("dsa_adaptation", BENCHMARKS / "dsa_adaptation.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dsa_adaptation", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(400)))
    return path


def test_a_rehearsal(script: ModuleType, text: Path, tmp_path: Path, capsys) -> None:
    small = "--seconds 3 --context 32 --topk 4 --layers 1 --width 16 --heads 2 --batch 4 --tested 4 --index-width 8"
    assert script.main([*small.split(), "--text", str(text), "--folder", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "dsa_adaptation.json").read_text())
    assert [curve["stage"] for curve in record["curves"]] == ["dense", "warm_up", "sparse", "dense on"]
    dense, warmed, sparse, on = record["curves"]
    assert not dense["recall"] and warmed["recall"] and len(sparse["loss"]) >= len(on["loss"])
    assert [row["keys"] for row in record["sweep"]] == [1, 2, 4, 8, 16, 32, 4]
    whole = record["sweep"][5]
    assert whole["recall"] == 1 and whole["loss"] == pytest.approx(record["losses"]["dense"], rel=1e-5)
    page = (tmp_path / "dsa_adaptation.md").read_text()
    assert "The gap between sparse and dense" in page and page.strip() in capsys.readouterr().out
    assert (tmp_path / "dsa_adaptation.png").stat().st_size > 0


def test_a_warm_up_moves_the_indexers_alone(script: ModuleType, text: Path) -> None:
    texts = script.Texts.read([str(text)], most=2**20)
    task = script.Task(texts, 32, 4, 4, torch.device("cpu"), 0)
    shape = script.GPT2Config(vocab_size=256, context_size=32, n_layer=1, n_head=2, n_embed=16)
    model = script.indexed(script.GPT2(shape), script.IndexerConfig(2, 8, 4, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curve = script.learn(model, "warm_up", task, script.Budget(60.0), most=30)
    assert len(curve.loss) == len(curve.indexer_loss) == 30 and curve.indexer_loss[-1] < curve.indexer_loss[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".indexer." in name for name in changed)


def test_texts_are_read_in_order_and_too_little_is_refused(script: ModuleType, text: Path, tmp_path: Path) -> None:
    texts = script.Texts.read([str(text)], most=5000)
    assert bytes([*texts.training.tolist(), *texts.test.tolist()]) == text.read_bytes()[:5000]
    assert len(texts.test) == 250
    assert 1500 < len(script.Texts.read([], most=2000).training) <= 1900
    few = tmp_path / "few.txt"
    few.write_text("too little")
    with pytest.raises(ValueError, match=r"few.txt hold 10 bytes; give more text"):
        script.Texts.read([str(few)], most=5000)
