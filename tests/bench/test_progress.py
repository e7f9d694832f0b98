"""Whoever waits for a benchmark reads what it is at."""

import subprocess
import sys

CODE = """
from gossamer.bench import BenchConfig, run, show_progress
show_progress()
run(BenchConfig(cases=("forward",), contenders=("sdpa",), lengths=(64,), heads=2, head_width=8, device="cpu"))
"""


def test_a_line_comes_as_each_contender_begins_and_ends():
    lines = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.splitlines()
    said = [line.split(" ", 1)[1] for line in lines]
    assert said[:2] == ["attention forward, sdpa at the gate", "attention forward, 64 tokens, sdpa warms up"]
    assert said[2].startswith("attention forward, 64 tokens, sdpa: ") and said[2].endswith(" ms") and len(said) == 3


def test_without_it_a_benchmark_is_silent():
    quiet = CODE.replace("show_progress()", "")
    assert subprocess.run([sys.executable, "-c", quiet], capture_output=True, text=True, check=True).stdout == ""
