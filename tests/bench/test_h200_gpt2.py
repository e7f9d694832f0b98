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
from gossamer.bench.backends import Backends
from gossamer.bench.results import Absence
from gossamer.bench.setting import Setting
from gossamer.machine import this_machine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "h200_gpt2.py"
CASE = "GPT-2 124M training step"

# torch.compile looks at the input of a block, which is no leaf
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def script(monkeypatch) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("h200_gpt2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # generates no code
    yield module
    torch.compiler.reset()  # what was compiled here counts against a limit that other tests share


@pytest.fixture
def setting(script) -> Setting:
    tiny = ModelBench(lengths=(64, 128), layers=1, vocabulary=97)
    return Setting(replace(script.CONFIG, heads=3, head_width=16, model=tiny, tokens=256, device="cpu"))


def results(script, seconds: dict[tuple[str, int], float]) -> Results:
    rows = tuple(
        Measurement(CASE, name, n, seconds=s, fastest=0.9 * s, slowest=1.1 * s, repeats=10, peak_bytes=2**34)
        for (name, n), s in seconds.items()
    )
    return Results(script.CONFIG, this_machine(), "2026-01-01", rows)


def test_it_measures_exactly_what_is_promised(script):
    config = script.CONFIG
    assert (config.heads, config.head_width, config.model.layers, config.model.vocabulary) == (12, 64, 12, 50304)
    assert config.model.lengths == (16384, 65536) and config.precision == "bf16" and config.tokens == 65536
    assert script.SPEEDUPS == {16384: 2.2, 65536: 4.5}
    assert script.SPARSE[script.DOCUMENT] == SparseAttentionConfig()
    assert script.SPARSE[script.WINDOW].pattern(4096).spec == "PerHead([(Causal() & Window(size=256), 12)])"
    assert set(script.OPERATORS) == {*script.DENSE, *script.SPARSE}


def test_the_fastest_dense_model_is_the_rival(script):
    seconds = {("dense, cuDNN", 16384): 0.3, ("dense, flash", 16384): 0.2, (script.DOCUMENT, 16384): 0.1}
    kept, missing = script.promises(results(script, seconds))
    assert kept.measured == pytest.approx(2.0) and not kept.kept
    assert missing.measured is None and not missing.kept
    alone = {key: s / 48 for key, s in seconds.items()}
    page = script.page(results(script, seconds), alone, [kept, missing])
    assert "| 16,384 | the document's pattern | – | 100.0 (90.0–110.0) | 655,360 | 25% | 16.0 | 2.00 |" in page
    assert page.count("| NO |") == 2


def test_before_anything_was_measured_nothing_is_kept(script, tmp_path):
    absent = Absence(CASE, "dense, cuDNN", 16384, "failed", "no kernel")
    nothing = replace(results(script, {}), outcomes=(absent,))
    page = script.write(nothing, {}, tmp_path)
    assert page.count("| not measured | NO |") == 2 and "dense, cuDNN failed: no kernel" in page


@pytest.mark.parametrize("kernel", [None, SDPBackend.MATH])
def test_a_compiled_step_trains_on_the_same_number_of_tokens_at_any_length(kernel, script, setting):
    sparse = SparseAttentionConfig(2, 1) if kernel is None else None
    step = script.prepare(setting, 64, sparse=sparse, kernel=kernel)
    assert step.text[0].shape == (4, 64)
    before = step.loss(step.forward)
    step()
    compiled, eager = step.loss(step.forward), step.loss(step.model)
    assert compiled < before and eager < before  # the parameters are the same ones
    torch.testing.assert_close(eager, compiled, rtol=torch.finfo(torch.bfloat16).eps, atol=0.0)  # by its rounding


@pytest.mark.parametrize("kernel", [None, SDPBackend.FLASH_ATTENTION])
def test_all_blocks_are_compiled_once_and_the_loss_once(kernel, script, setting, monkeypatch):
    graphs, compile_ = [], torch.compile.func

    def noting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(compile_, backend=noting))
    deep = Setting(replace(setting.config, model=replace(setting.config.model, layers=4)))
    step = script.prepare(deep, 64, sparse=SparseAttentionConfig(2, 1) if kernel is None else None, kernel=kernel)
    step()
    assert len(graphs) == 2


def test_each_contender_and_length_has_a_graph_of_its_own(script, setting):
    losses = {}
    for length in (64, 128):
        for name, sparse in (("document", SparseAttentionConfig(2, 1)), ("dense", None)):
            kernel = None if sparse else SDPBackend.FLASH_ATTENTION
            step = script.prepare(setting, length, sparse=sparse, kernel=kernel)
            losses[name, length] = found = step.loss(step.forward).item()
            assert found == pytest.approx(step.loss(step.model).item(), rel=4e-3)
    assert len(set(losses.values())) == 4


@pytest.mark.parametrize(
    ("kernel", "operator", "ran"),
    [
        (SDPBackend.FLASH_ATTENTION, "aten::_scaled_dot_product_flash_attention", True),
        (SDPBackend.MATH, "aten::_scaled_dot_product_flash_attention", False),
    ],
)
def test_a_kernel_that_did_not_run_inside_the_graph_is_named(kernel, operator, ran, script, setting, monkeypatch):
    monkeypatch.setattr(script, "DENSE", {"dense": kernel})
    monkeypatch.setattr(script, "OPERATORS", {"dense": operator})
    step = script.prepare(setting, 64, kernel=kernel)
    assert script.fault(setting, "dense", {}, 64, step) == (None if ran else f"{operator} did not run")


def test_a_compiled_model_that_computes_something_else_is_named(script, setting, monkeypatch):
    monkeypatch.setattr(script, "SPARSE", {script.DOCUMENT: SparseAttentionConfig(2, 1)})
    step, alone = script.prepare(setting, 64, sparse=SparseAttentionConfig(2, 1)), {}
    assert script.fault(setting, script.DOCUMENT, alone, 64, step) is None
    assert list(alone) == [(script.DOCUMENT, 64)] and 0 < alone[script.DOCUMENT, 64] < 10
    other = script.prepare(setting, 64, sparse=SparseAttentionConfig(1, 2))
    with torch.no_grad():
        other.model.wte.weight.mul_(3)
    wrong = replace(step, forward=other.model)
    assert "the plain one" in script.fault(setting, script.DOCUMENT, alone, 64, wrong)
    dense = script.prepare(setting, 64, kernel=SDPBackend.MATH)
    assert "did not run" in script.fault(setting, script.DOCUMENT, alone, 64, dense)


def test_everyone_is_judged_before_being_timed(script, setting, monkeypatch):
    monkeypatch.setattr(script, "SPARSE", {script.DOCUMENT: SparseAttentionConfig(2, 1)})
    monkeypatch.setattr(script, "TRIAL_LENGTH", 64)
    contenders = script.case(setting, {}).contenders
    assert [(c.name, c.fault()) for c in contenders] == [(n, None) for n in (*script.DENSE, script.DOCUMENT)]


@pytest.fixture
def tiny(script, setting, monkeypatch) -> ModuleType:
    monkeypatch.setattr(script, "CONFIG", replace(setting.config, repeats=1, warmup=1))
    monkeypatch.setattr(script, "DENSE", {"dense, flash": SDPBackend.FLASH_ATTENTION})
    monkeypatch.setattr(script, "SPARSE", {script.DOCUMENT: SparseAttentionConfig(2, 1)})
    monkeypatch.setattr(script, "SPEEDUPS", {64: 1e-6, 128: 1e6})
    monkeypatch.setattr(script, "TRIAL_LENGTH", 64)
    return script


def test_the_run_writes_its_page_and_fails_where_a_promise_is_broken(tiny, tmp_path, capsys):
    assert tiny.main(["--folder", str(tmp_path / "results"), "--commit", "abc1234"]) == 1
    page = (tmp_path / "results" / "h200_gpt2.md").read_text()
    assert page in capsys.readouterr().out and "commit abc1234" in page
    assert page.count("| 64 |") == page.count("| 128 |") == 2
    assert page.count("| the document's pattern | tiled |") == page.count("| dense, flash | – |") == 2
    assert page.count("| yes |") == page.count("| NO |") == 1
    record = json.loads((tmp_path / "results" / "h200_gpt2.json").read_text())
    assert len(record["measurements"]) == len(record["attention"]) == 4
    assert [p["kept"] for p in record["promises"]] == [True, False]
    ours = Results.from_record(record).measurements(CASE, tiny.DOCUMENT)
    assert [m.backends for m in ours] == [Backends("tiled", "tiled")] * 2


def test_a_run_that_is_cut_leaves_the_lengths_that_it_has_finished(tiny, tmp_path, monkeypatch):
    prepare = tiny.prepare

    def cut(setting, length, **contender):
        if length == 128:
            raise KeyboardInterrupt
        return prepare(setting, length, **contender)

    monkeypatch.setattr(tiny, "prepare", cut)
    with pytest.raises(KeyboardInterrupt):
        tiny.main(["--folder", str(tmp_path)])
    record = json.loads((tmp_path / "h200_gpt2.json").read_text())
    assert {row["length"] for row in record["measurements"]} == {64} and len(record["measurements"]) == 2
    assert (tmp_path / "h200_gpt2.md").read_text().count("| 64 |") == 2


def test_a_rehearsal_is_the_same_models_made_small(script):
    config = script.small(script.CONFIG)
    assert config.model.lengths == (64, 256) and config.device == "cpu" and config.heads == 12
