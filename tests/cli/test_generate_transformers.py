"""`gossamer generate` with a model of transformers: by its own configuration or a pattern given, and without end."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from gossamer import GPT2, GPT2Config, Sinks, Window, sparsify
from gossamer.cli.writer import is_of_transformers
from gossamer.tokenizer import ByteTokenizer
from tests.convert.tiny import FAMILIES, decoder, save

from .conftest import Here, command, environment

PATTERN = Window(9) | Sinks(2)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(decoder(FAMILIES["llama"]), tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(sparsify(decoder(FAMILIES["llama"]), PATTERN), tmp_path_factory.mktemp("sparse"))


GREEDY = ("--max-new-tokens", "12", "--temperature", "0")


def test_a_pattern_given_writes_what_the_configuration_would(dense: Path, sparse: Path, here: Here) -> None:
    given = here("generate", "--model", str(dense), "--pattern", PATTERN.spec, "--prompt", "lower", *GREEDY)
    saved = here("generate", "--model", str(sparse), "--prompt", "lower", *GREEDY)
    other = here("generate", "--model", str(sparse), "--pattern", "Window(1)", "--prompt", "lower", *GREEDY)
    assert given.returncode == saved.returncode == 0, given.stderr + saved.stderr
    assert saved.stdout.startswith("lower") and len(saved.stdout) > len("lower\n")
    assert given.stdout == saved.stdout != other.stdout


def test_several_prompts_are_each_written_on_as_alone(sparse: Path, here: Here, tmp_path: Path) -> None:
    prompts = ["low", "lower lowest, so", "the slower"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    together = here("generate", "--model", str(sparse), "--prompts", "prompts.txt", *GREEDY)
    alone = [here("generate", "--model", str(sparse), "--prompt", prompt, *GREEDY).stdout for prompt in prompts]
    assert together.stdout == "".join(alone)


def test_several_prompts_of_an_own_model_too(here: Here, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(257, 64, n_layer=1, n_head=3, n_embed=12, use_sparse_attention=True)
    GPT2(config).save(tmp_path / "own")
    ByteTokenizer().save(tmp_path / "own")
    (tmp_path / "prompts.txt").write_text("low\nlower lowest\n")
    together = here("generate", "--model", "own", "--prompts", "prompts.txt", *GREEDY)
    alone = [here("generate", "--model", "own", "--prompt", text, *GREEDY).stdout for text in ("low", "lower lowest")]
    assert together.returncode == 0, together.stderr
    assert together.stdout == "".join(alone)


def test_endless_text_goes_on_until_it_is_interrupted(sparse: Path) -> None:
    """Past the model's 64 positions, and past its end of text."""
    endless = command("generate", "--model", str(sparse), "--prompt", "lower", "--endless", "--seed", "1")
    with subprocess.Popen(
        endless, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as writer:  # fmt: skip
        assert writer.stdout is not None
        try:
            assert len(writer.stdout.read(2000)) == 2000
            writer.send_signal(signal.SIGINT)
            writer.communicate(timeout=30)
            assert writer.returncode == 130
        finally:
            writer.kill()


def test_a_dense_model_without_a_pattern_is_refused_and_told_how(dense: Path, here: Here) -> None:
    done = here("generate", "--model", str(dense), "--prompt", "a")
    assert done.returncode == 1
    assert "is dense; give --pattern" in done.stderr


def test_a_pattern_for_an_own_model_is_wrong_usage(here: Here, tmp_path: Path) -> None:
    GPT2(GPT2Config(257, 32, n_layer=1, n_head=3, n_embed=12)).save(tmp_path / "own")
    done = here("generate", "--model", "own", "--pattern", "Window(3)", "--prompt", "a")
    assert done.returncode == 2
    assert "--pattern is for models of Hugging Face" in done.stderr


def test_an_empty_file_of_prompts_is_wrong_usage(sparse: Path, here: Here, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("")
    done = here("generate", "--model", str(sparse), "--prompts", "none.txt")
    assert done.returncode == 2
    assert "none.txt is empty" in done.stderr


@pytest.mark.parametrize(
    ("stated", "theirs"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "gpt2"}, False),
        ({"model_type": "gpt2", "sparse_attention": {"patterns": []}}, True),
        ({"model_type": "gpt2", "gossamer": {}, "sparse_attention": {"patterns": []}}, False),
        ({}, False),
        ([], False),
    ],
)
def test_whose_model_it_is(stated: object, theirs: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert is_of_transformers(tmp_path) == theirs
    assert not is_of_transformers(tmp_path / "absent")
