"""The house has one street and its rules: every rule is run on the package and on a planted fault."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house_rules import (
    PACKAGE,
    PARAMETERS,
    PROMISED,
    RULES,
    SRC,
    STREET,
    WIDE,
    WITHOUT_TORCH,
    Source,
    arguments,
    read,
)

FILES = sorted([*(SRC / PACKAGE).rglob("*.py"), *(SRC / PACKAGE).rglob("*.pyi")])


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule: str) -> None:
    problems = [f"{path.relative_to(SRC)}:{problem}" for path in FILES for problem in RULES[rule](read(path))]
    assert not problems, f"{RULES[rule].__doc__}\n" + "\n".join(problems)


def _function(lines: int, head: str = "def f():") -> str:
    return f"{head}\n" + "    x = 1\n" * (lines - 1)


FAULTS = (
    ("arrows_run_one_way", "patterns.window", "from ..plan import plan"),
    ("arrows_run_one_way", "patterns.window", "from .. import plan"),
    ("arrows_run_one_way", "patterns.window", "from gossamer.plan import plan"),
    ("arrows_run_one_way", "patterns.window", "import gossamer.plan"),
    ("arrows_run_one_way", "plan", "from .kernels import pick"),
    ("arrows_run_one_way", "kernels.tiled", "from ..ops import forward"),
    ("arrows_run_one_way", "ops", "def f():\n    from .attention import attend"),
    ("arrows_run_one_way", "config.sparse", "from ..nn.sparse import SparseAttention"),
    ("arrows_run_one_way", "nn.sparse", "from ..models.gpt2 import GPT2"),
    ("arrows_run_one_way", "models.gpt2", "from gossamer import attend"),
    ("arrows_run_one_way", "training.loop", "from ..generation import generate"),
    ("arrows_run_one_way", "training.loop", "import importlib\nimportlib.import_module('gossamer.bench')"),
    ("arrows_run_one_way", "report.page", "from ..cli import main"),
    ("kernels_stand_alone", "kernels.triton.band", "from ..tiled import forward"),
    ("kernels_stand_alone", "kernels.triton.band", "from .. import tiled"),
    ("kernels_stand_alone", "kernels.tiled", "from ..patterns.base import Pattern"),
    ("the_oracle_knows_patterns_only", "reference", "from .plan import plan"),
    ("signatures_are_closed", "nn.sparse", "def f(x, **kwargs): ..."),
    ("signatures_are_closed", "nn.sparse", "class A:\n    def forward(self, x, **rest): ..."),
    ("parameters_are_few", "nn.sparse", "def _f(a, b, c, d, *, e, f, g, h, i): ..."),
    ("parameters_are_few", "nn.sparse", "class A:\n    def f(self, a, b, c, d, e, f, g): ..."),
    ("functions_are_short", "nn.sparse", _function(61)),
    ("functions_are_short", "kernels.triton.band", _function(151, "@triton.jit\ndef f():")),
    ("files_are_short", "nn.sparse", "x = 1\n" * 401),
    ("files_are_short", "kernels.tiled", "x = 1\n" * 601),
    ("the_environment_is_not_asked", "ops", "import os\nfast = os.environ.get('FAST')"),
    ("the_environment_is_not_asked", "ops", "from os import environ"),
    ("the_environment_is_not_asked", "ops", "import os\nfast = os.getenv('FAST')"),
    ("nothing_is_unpickled_or_evaluated", "training.checkpoint", "import pickle"),
    ("nothing_is_unpickled_or_evaluated", "training.checkpoint", "import torch\ntorch.load('x')"),
    ("nothing_is_unpickled_or_evaluated", "patterns.text", "eval('Window(3)')"),
    ("nothing_is_left_for_later", "ops", "x = 1  # TODO later"),
    ("nothing_is_left_for_later", "ops", "def f():\n    raise NotImplementedError"),
    ("names_say_what_they_are", "nn.utils", ""),
    ("names_say_what_they_are", "nn.cache", "class CacheManager: ..."),
    ("names_say_what_they_are", "nn.cache", "def get_cache(): ..."),
    ("names_say_what_they_are", "ops", "def forward_v2(): ..."),
    ("public_things_are_described", "ops", "def forward(): ..."),
    ("public_things_are_described", "nn.cache", "class KVCache: ..."),
)


@pytest.mark.parametrize(("rule", "name", "text"), FAULTS)
def test_a_planted_fault_is_found(rule: str, name: str, text: str) -> None:
    assert list(RULES[rule](Source(f"{PACKAGE}.{name}", text)))


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _ in FAULTS} == set(RULES)


SOUND = (
    ("plan", "from .patterns.base import Pattern"),
    ("nn.sparse", "from ..config import GPT2Config\nfrom . import cache"),
    ("nn.sparse", "from ..attention import attend"),
    ("kernels.triton.band", "from . import tiles\nfrom .. import Problem\nfrom ...plan import Band"),
    ("reference", "import torch\n\nfrom .patterns import Pattern"),
    ("nn.sparse", 'def f(a, b, c, d, e, f, *, g, h):\n    """Says."""'),
    ("ops", "import os\n\nhere = os.getcwd()"),
    ("models.gpt2", "model.eval()\nmodel.load('x')"),
    ("kernels.triton.band", _function(150, "@triton.jit\ndef _f(a, b, c, d, e, f, g, h, i, j):")),
)


@pytest.mark.parametrize(("name", "text"), SOUND)
def test_sound_code_passes_every_rule(name: str, text: str) -> None:
    source = Source(f"{PACKAGE}.{name}", text)
    assert [problem for rule in RULES.values() for problem in rule(source)] == []


@pytest.mark.parametrize("function", WIDE)
def test_an_exception_is_still_needed(function: str) -> None:
    module, _, name = function.rpartition(".")
    source = read((SRC / PACKAGE / module.replace(".", "/")).with_suffix(".py"))
    assert any(len(arguments(node)) > PARAMETERS for node in source.functions if node.name == name)


def test_every_place_on_the_street_is_taken() -> None:
    """An entry that names no module would excuse what it once described."""
    paths = [SRC / PACKAGE / entry.replace(".", "/") for row in STREET for entry in row]
    assert [str(path) for path in paths if not path.is_dir() and not path.with_suffix(".py").is_file()] == []


@pytest.mark.parametrize("stub", [path for path in FILES if path.suffix == ".pyi"], ids=lambda p: p.parent.name)
def test_every_export_exists(stub: Path) -> None:
    source = read(stub)
    module = importlib.import_module(source.name)
    lines = [node for node in source.tree.body if isinstance(node, ast.ImportFrom)]
    exported = [alias.asname for line in lines for alias in line.names]
    assert exported, f"{stub} exports nothing"
    assert [name for name in exported if name is None or not hasattr(module, name)] == []


@pytest.mark.parametrize("name", [name for names in PROMISED.values() for name in names])
def test_the_public_name_is_importable(name: str) -> None:
    assert hasattr(importlib.import_module(PACKAGE), name)


def _loaded_by(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_no_torch() -> None:
    """`--help` answers at once, and a configuration can be read where torch is not installed."""
    loaded = _loaded_by(PACKAGE, f"{PACKAGE}.cli", *(f"{PACKAGE}.{name}" for name in WITHOUT_TORCH))
    assert not loaded & {"torch", "triton", "transformers", "matplotlib"}


def test_the_check_for_torch_would_see_it() -> None:
    assert "torch" in _loaded_by(f"{PACKAGE}.attention")
