"""The script's gate, judgement and page, on figures made by hand and on tiny models."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.attention import SDPBackend

from gossamer import SparseAttentionConfig
from gossamer.bench import Measurement, ModelBench, Results
from gossamer.bench.setting import Setting
from gossamer.machine import this_machine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "h200_gpt2.py"
CASE = "GPT-2 124M training step"


@pytest.fixture
def script(monkeypatch) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("h200_gpt2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # generates no code
    monkeypatch.setattr(module, "TOKENS", 256)
    yield module
    torch.compiler.reset()  # what was compiled here counts against a limit that other tests share


@pytest.fixture
def setting(script) -> Setting:
    tiny = ModelBench(lengths=(64, 128), layers=1, vocabulary=97)
    return Setting(replace(script.CONFIG, heads=3, head_width=16, model=tiny, device="cpu"))


def results(script, seconds: dict[tuple[str, int], float]) -> Results:
    rows = tuple(
        Measurement(CASE, name, n, seconds=s, fastest=0.9 * s, slowest=1.1 * s, repeats=10, peak_bytes=2**34)
        for (name, n), s in seconds.items()
    )
    return Results(script.CONFIG, this_machine(), "2026-01-01", rows)


def test_it_measures_exactly_what_is_promised(script):
    config = script.CONFIG
    assert (config.heads, config.head_width, config.model.layers, config.model.vocabulary) == (12, 64, 12, 50304)
    assert config.model.lengths == (16384, 65536) and config.precision == "bf16"
    assert script.SPEEDUPS == {16384: 2.2, 65536: 4.5}
    assert script.SPARSE[script.DOCUMENT] == SparseAttentionConfig()
    assert script.SPARSE[script.WINDOW].pattern(4096).spec == "PerHead([(Causal() & Window(size=256), 12)])"


def test_the_fastest_dense_model_is_the_rival(script):
    seconds = {("dense, cuDNN", 16384): 0.3, ("dense, flash", 16384): 0.2, (script.DOCUMENT, 16384): 0.1}
    kept, missing = script.promises(results(script, seconds))
    assert kept.measured == pytest.approx(2.0) and not kept.kept
    assert missing.measured is None and not missing.kept
    page = script.page(results(script, seconds), dict.fromkeys(seconds, 0.25), [kept, missing])
    assert "| 16,384 | the document's pattern | 100.0 (90.0–110.0) | 2,560 | 25% | 16.0 | 2.00 |" in page
    assert page.count("| NO |") == 2


@pytest.mark.parametrize("kernel", [None, SDPBackend.MATH])
def test_a_compiled_step_trains_on_the_same_number_of_tokens_at_any_length(kernel, script, setting):
    sparse = SparseAttentionConfig(2, 1) if kernel is None else None
    step = script.prepare(setting, 64, sparse=sparse, kernel=kernel)
    assert step.text[0].shape == (4, 64)
    before = step.loss(step.forward)
    step()
    assert step.loss(step.forward) < before


def test_a_compiled_model_that_computes_something_else_is_named(script, setting, monkeypatch):
    monkeypatch.setattr(script, "attention_share", lambda step, operator: 0.5)
    step, shares = script.prepare(setting, 64, sparse=SparseAttentionConfig(2, 1)), {}
    assert script.fault(script.DOCUMENT, shares, 64, step) is None
    assert shares == {(script.DOCUMENT, 64): 0.5}
    other = script.prepare(setting, 64, sparse=SparseAttentionConfig(1, 2))
    with torch.no_grad():
        other.model.wte.weight.mul_(3)
    assert "the plain one" in script.fault(script.DOCUMENT, shares, 64, replace(step, forward=other.model))
    monkeypatch.setattr(script, "attention_share", lambda step, operator: 0.0)
    assert "did not run" in script.fault(script.DOCUMENT, shares, 64, step)


def test_everyone_is_judged_before_being_timed(script, setting, monkeypatch):
    monkeypatch.setattr(script, "SPARSE", {script.DOCUMENT: SparseAttentionConfig(2, 1)})
    monkeypatch.setattr(script, "TRIAL_LENGTH", 64)
    contenders = script.case(setting, {}).contenders
    assert [(c.name, c.fault()) for c in contenders] == [(n, None) for n in (*script.DENSE, script.DOCUMENT)]


def test_the_run_writes_its_page_and_fails_where_a_promise_is_broken(script, setting, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "CONFIG", replace(setting.config, repeats=1, warmup=1))
    monkeypatch.setattr(script, "DENSE", {"dense, cuDNN": SDPBackend.MATH, "dense, flash": SDPBackend.MATH})
    monkeypatch.setattr(script, "SPARSE", {script.DOCUMENT: SparseAttentionConfig(2, 1)})
    monkeypatch.setattr(script, "SPEEDUPS", {64: 1e-6, 128: 1e6})
    monkeypatch.setattr(script, "TRIAL_LENGTH", 64)
    monkeypatch.setattr(script, "attention_share", lambda step, operator: 0.5)
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    assert script.main() == 1
    page = (script.RESULTS / "h200_gpt2.md").read_text()
    assert page in capsys.readouterr().out
    assert page.count("| 64 |") == page.count("| 128 |") == 3 and page.count("| 50% |") == 6
    assert page.count("| yes |") == page.count("| NO |") == 1
    record = json.loads((script.RESULTS / "h200_gpt2.json").read_text())
    assert len(record["measurements"]) == len(record["attention"]) == 6
    assert [p["kept"] for p in record["promises"]] == [True, False]
