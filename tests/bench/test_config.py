"""The benchmark's configuration: what it refuses, and that it is read without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from gossamer.bench.config import PEERS, BenchConfig, ModelBench


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"lengths": (512, 0)}, "lengths is 0"),
        ({"lengths": ()}, "lengths is empty"),
        ({"cases": ()}, "cases is empty"),
        ({"contenders": ("sdpa", "fastest")}, "contenders holds 'fastest'"),
        ({"cases": ("backward",)}, "cases holds 'backward'"),
        ({"precision": "fp8"}, "precision holds 'fp8'"),
        ({"heads": -1}, "heads is -1"),
        ({"window": 2.5}, "window is 2.5"),
        ({"repeats": 0}, "repeats is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"tokens": 0}, "tokens is 0"),
        ({"key_heads": 5}, "key_heads is 5"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"memory_gib": -2.0}, "memory_gib is -2.0"),
    ],
)
def test_a_senseless_value_is_refused_by_name(bad, words):
    with pytest.raises(ValueError, match=f"BenchConfig: {words}; "):
        BenchConfig(**bad)


def test_the_models_values_are_checked_too():
    with pytest.raises(ValueError, match="ModelBench: layers is 0; give an integer of at least 1"):
        ModelBench(layers=0)


def test_the_command_line_is_the_same_tree():
    flags = "--lengths 256 512 --contenders sdpa window --cases forward --model.layers 2 --folder out"
    expected = BenchConfig(
        lengths=(256, 512),
        contenders=("sdpa", "window"),
        cases=("forward",),
        model=ModelBench(layers=2),
        folder=Path("out"),
    )
    assert tyro.cli(BenchConfig, args=flags.split()) == expected


def test_peers_join_those_who_were_named():
    assert set(PEERS).isdisjoint(BenchConfig().entered)
    assert BenchConfig(contenders=("flex", "window"), peers=True).entered == (
        *("flex", "window", "local-attention"),
        *("flex-document", "flex-window+tokens", "fa4"),
    )


def test_it_is_read_without_torch():
    code = "import sys, gossamer.bench.config, gossamer.bench; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
