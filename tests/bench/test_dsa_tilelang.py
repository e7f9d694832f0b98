"""TileLang's kernels in the benchmark: why they are absent, and that theirs are judged in their own layouts."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
THEIRS = ("tilelang", "utils", "sparse_mla_fwd", "sparse_mla_fwd_pipelined", "sparse_mla_bwd")
INDEX = ("fp8_lighting_indexer", "topk_selector")

FORWARD = """
import torch
from utils import attention

def sparse_mla_fwd_interface(q, kv, indices, sm_scale=None):
    assert q.is_contiguous() and kv.is_contiguous() and indices.is_contiguous()
    return attention(q, kv, indices, sm_scale)
"""
PIPELINED = """
import torch
from utils import attention

def sparse_mla_fwd_interface(q, kv, indices, q_start_index_s, kv_stride, sm_scale=None):
    assert q_start_index_s == 0 and kv_stride == 1
    out, lse = attention(q, kv, indices, sm_scale)
    return out, torch.full_like(lse, torch.nan)
"""
BACKWARD = """
import torch
from utils import attention

def sparse_mla_bwd(q, kv, o, do, indices, lse, sm_scale=None):
    q, kv = q.detach().requires_grad_(), kv.detach().requires_grad_()
    out, own = attention(q, kv, indices, sm_scale)
    assert torch.equal(out, o) and torch.equal(own, lse)
    return torch.autograd.grad(out, (q, kv), do)
"""
ATTENTION = """
import torch

def attention(q, kv, indices, sm_scale):
    (_, n, heads, width), keys = q.shape, kv.shape[1]
    assert kv.shape == (1, keys, 1, width) and indices.shape[:3] == (1, n, 1) and indices.dtype == torch.int32
    chosen = torch.zeros(n, keys + 1, dtype=torch.bool).scatter_(1, indices[0, :, 0].long(), True)[:, :keys]
    seen = chosen & torch.ones(n, keys, dtype=torch.bool).tril()
    scores = torch.einsum("qhd,kd->hqk", q[0].float(), kv[0, :, 0].float()) * sm_scale
    scores = scores.masked_fill(~seen, -torch.inf)
    out = torch.einsum("hqk,kd->qhd", scores.softmax(-1), kv[0, :, 0, :512].float())
    return out[None].to(q.dtype), (scores.logsumexp(-1) / 0.6931471805599453).T[None].contiguous()
"""

SCORES = """
import torch

def mqa_attn_return_logits_interface(q, kv, kv_scales, weights, cu_seqlen_ks, cu_seqlen_ke, clean_logits=True):
    assert q.is_contiguous() and q.dtype == kv.dtype == torch.float8_e4m3fn
    products = torch.relu(torch.einsum("qjd,kd->qjk", q.float(), kv.float()))
    assert not cu_seqlen_ks.any() and cu_seqlen_ke.tolist() == list(range(1, len(q) + 1))
    scores = torch.einsum("qjk,qj->qk", products, weights) * kv_scales
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), torch.nan)
"""
CHOICE = """
import torch

def tl_topk(input, starts, ends, topk):
    found = torch.zeros(len(input), topk, dtype=torch.int32)
    for row, (scores, end) in enumerate(zip(input, ends.tolist())):
        best = scores[:end].topk(min(topk, end)).indices.flip(0)
        found[row, : len(best)] = best
    return found
"""


@pytest.fixture
def dsa(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("dsa.latents")
    for name in [name for name in sys.modules if name.split(".")[0] == "dsa" or name in (*THEIRS, *INDEX)]:
        del sys.modules[name]


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "installed" / "tilelang").mkdir(parents=True)
    (tmp_path / "installed" / "tilelang" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    folder = tmp_path / "deepseek_v32"
    folder.mkdir()
    texts = (ATTENTION, FORWARD, PIPELINED, BACKWARD, SCORES, CHOICE)
    for name, text in zip((*THEIRS[1:], *INDEX), texts, strict=True):
        (folder / f"{name}.py").write_text(text)
    return folder


def measured(dsa: ModuleType, examples: Path | None) -> dict:
    torch.manual_seed(0)
    problem = dsa.Problem(96, torch.device("cpu"), heads=4, chosen=32, repeats=1)
    figures = {(each.contender, each.case): each for each in dsa.latent_figures(problem, examples)}
    assert all(figures["gossamer", case].seconds for case in ("forward", "backward"))
    return figures


BOTH = (("TileLang", "forward"), ("TileLang", "backward"))
ALL = (*BOTH, ("TileLang, pipelined", "forward"))


def test_their_kernels_are_measured_over_our_keys_as_ours_are(dsa, examples):
    before = list(sys.path)
    figures = measured(dsa, examples)
    assert sys.path == before
    for contender, case in ALL:
        own, ours = figures[contender, case], figures["gossamer", case]
        assert own.absence is None and own.seconds > 0 and own.error < 0.01
        assert own.operations == ours.operations


@pytest.mark.parametrize(
    ("name", "right", "wrong", "off"),
    [
        ("sparse_mla_fwd", "sm_scale)", "2 * sm_scale)", [("TileLang", "forward")]),
        ("sparse_mla_bwd", "sm_scale)", "2 * sm_scale)", [("TileLang", "backward")]),
        ("sparse_mla_bwd", "(out, (q, kv), do)", "(out, (q, kv), 2 * do)", [("TileLang", "backward")]),
        ("sparse_mla_fwd_pipelined", "return out", "return out * torch.nan", [("TileLang, pipelined", "forward")]),
        ("utils", "[:, :keys]", ".roll(1, 1)[:, :keys]", list(ALL)),
    ],
)
def test_what_is_wrong_is_not_timed(dsa, examples, name, right, wrong, off):
    backward = examples / "sparse_mla_bwd.py"
    backward.write_text(backward.read_text().replace("assert torch.equal(out, o) and torch.equal(own, lse)", ""))
    path = examples / f"{name}.py"
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    figures = measured(dsa, examples)
    for each in ALL:
        figure = figures[each]
        assert (figure.seconds is None) == (each in off)
        assert each not in off or figure.absence.endswith("off")


def test_what_their_compiler_raises_is_why_there_is_no_figure(dsa, examples):
    (examples / "sparse_mla_bwd.py").write_text("def sparse_mla_bwd(*_, **__):\n    raise ValueError('no GPU')\n")
    figures = measured(dsa, examples)
    assert figures["TileLang", "backward"].absence == "ValueError: no GPU"
    assert figures["TileLang, pipelined", "forward"].seconds > 0


def test_an_absent_folder_or_file_says_so(dsa, examples):
    assert {measured(dsa, None)[each].absence for each in BOTH} == {
        "ImportError: --tilelang names no folder of its examples"
    }
    (examples / "sparse_mla_bwd.py").unlink()
    assert "no sparse_mla_bwd.py" in measured(dsa, examples)["TileLang", "backward"].absence


@pytest.mark.skipif(importlib.util.find_spec("tilelang") is not None, reason="TileLang is installed")
def test_an_absent_package_says_so(dsa, tmp_path):
    figures = measured(dsa, tmp_path)
    assert {figures[each].absence for each in BOTH} == {"ImportError: the package tilelang is not installed"}


def of_index(examples: Path | None):
    figures = importlib.import_module("dsa.index").index_figures
    torch.manual_seed(0)
    problem = importlib.import_module("dsa.problem").Problem
    problem = problem(96, torch.device("cpu"), chosen=32, index_heads=4, index_width=16, repeats=1)
    return next(each for each in figures(problem, examples) if each.contender == "TileLang")


def test_their_index_is_measured_over_our_numbers(dsa, examples):
    figure = of_index(examples)
    assert figure.absence is None and figure.seconds > 0 and figure.case == "fp8"


@pytest.mark.parametrize("wrong", ["scores[:end].neg()", "scores.nan_to_num(0)"])
def test_a_wrong_choice_of_theirs_is_not_timed(dsa, examples, wrong):
    (examples / "topk_selector.py").write_text(CHOICE.replace("scores[:end]", wrong))
    figure = of_index(examples)
    assert figure.seconds is None and figure.absence.startswith("query ")


def test_an_index_without_its_examples_says_so(dsa, examples):
    assert of_index(None).absence == "ImportError: --tilelang names no folder of its examples"
    (examples / "topk_selector.py").unlink()
    assert "no topk_selector.py" in of_index(examples).absence
