"""The facts that go with every measurement."""

import os
import subprocess
from pathlib import Path

import torch

from gossamer.machine import commit_of, installed, this_machine


def test_the_machine_is_this_one():
    machine = this_machine()
    assert machine.cores == os.cpu_count() and machine.threads == torch.get_num_threads()
    assert machine.torch == torch.__version__ and machine.cpu and machine.memory_bytes > 2**28
    assert (machine.gpu is None) == (not torch.cuda.is_available())


def test_a_package_that_is_not_there_has_no_version():
    assert installed("torch") and installed("no-such-package-at-all") is None


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    run = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_the_commit_is_that_of_the_package_s_own_files(tmp_path):
    package, beside = tmp_path / "package", tmp_path / "beside"
    for folder in (package, beside):
        folder.mkdir()
    assert commit_of(package) is None
    commit_of.cache_clear()
    git(tmp_path, "init", "--quiet")
    (package / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    (beside / "figures.json").write_text("{}")  # what a benchmark has just written makes nothing dirty
    assert commit_of(package) == commit and commit_of(beside) is None
    (package / "a.py").write_text("x = 2\n")
    commit_of.cache_clear()
    assert commit_of(package) == f"{commit} dirty"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    commit_of.cache_clear()
    assert this_machine().commit is None
    commit_of.cache_clear()
