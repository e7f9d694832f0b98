"""`gossamer serve` refuses what cannot be served before it reads a weight."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import pytest

from gossamer.cli import serve

from .conftest import Here


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a configuration and nothing else, which is all that is read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pattern", "Window("], "Window("),
        (["--port", "-1"], "port is -1"),
        (["--port", "65536"], "port is 65536"),
        (["--max-body", "0"], "max_body is 0"),
        (["--max-requests", "0"], "max_requests is 0"),
        (["--max-context", "1"], "max_context is 1"),
        (["--grace", "-1"], "grace is -1"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--continuous-batching"], "a paged cache of its own"),
    ],
)
def test_wrong_flags_are_2(flags: list[str], said: str, model: Path, here: Here) -> None:
    done = here("serve", str(model), *flags)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_folder_without_a_model_is_1(tmp_path: Path, here: Here) -> None:
    done = here("serve", str(tmp_path / "absent"), "--pattern", "Window(8)")
    assert done.returncode == 1
    assert "has no config.json; give the folder of a saved model" in done.stderr


def test_a_configuration_that_is_no_json_is_1(model: Path, here: Here) -> None:
    (model / "config.json").write_text("{")
    assert "is no JSON text" in here("serve", str(model)).stderr


def test_a_model_without_a_pattern_is_1(model: Path, here: Here) -> None:
    done = here("serve", str(model))
    assert done.returncode == 1
    assert "has no sparse_attention, so the model would run dense; give --pattern" in done.stderr


def test_a_port_in_use_is_1(model: Path, here: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = here("serve", str(model), "--pattern", "Window(8)", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr and "give another --port" in done.stderr


def test_a_missing_engine_is_named_with_its_extra(model: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "ENGINE", ("fastapi_that_is_not_here", *serve.ENGINE))
    done = here("serve", str(model), "--pattern", "Window(8)")
    assert done.returncode == 1
    assert "fastapi_that_is_not_here not installed; run pip install 'gossamer[serve]'" in done.stderr


def test_an_ipv6_address_is_bound() -> None:
    if not socket.has_ipv6 or importlib.util.find_spec("fastapi") is None:
        pytest.skip("needs IPv6 and gossamer[serve]")
    from gossamer.integrations.huggingface.serving import address

    with serve.bound("::1", 0) as listener:
        assert address(listener) == f"http://[::1]:{listener.getsockname()[1]}/v1"
