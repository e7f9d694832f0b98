"""The written folder: a whole sparse model, and a dense one that was not touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers

from gossamer import GPT2, Causal, GPT2Config, PerHead, Sinks, SparseAttentionConfig, Strided, Window, parse
from gossamer.convert import writing
from gossamer.convert.checkpoint import open_model
from gossamer.convert.writing import document_split, own_split, require_free, write_sparse
from gossamer.integrations.huggingface import resparsify, sparsify
from gossamer.tokenizer import ByteTokenizer, load_tokenizer

from .tiny import FAMILIES, decoder, folder_of, save

LOCAL, FAR, STREAM = Causal() & Window(8), Causal() & Strided(10), Causal() & (Window(8) | Sinks(4))
PATTERNS = (PerHead([(STREAM, 2), (FAR, 2)]), Causal())
TOKENS = torch.arange(40)[None] * 7 % 250


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_folder_is_the_model_with_its_patterns(tmp_path: Path) -> None:
    source, out = folder_of("llama", tmp_path / "dense"), tmp_path / "sparse"
    (source / "extra").mkdir()
    (source / "extra" / "licence.txt").write_text("free")
    before = digests(source)
    write_sparse(open_model(source), PATTERNS, out)
    assert digests(source) == before
    after = digests(out)
    assert {**after, "config.json": ""} == {**before, "config.json": ""}
    dense, sparse = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert sparse == {**dense, "sparse_attention": {"patterns": [pattern.spec for pattern in PATTERNS]}}
    assert [parse(text) for text in sparse["sparse_attention"]["patterns"]] == list(PATTERNS)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_it_and_resparsify_applies_it(family: str, tmp_path: Path) -> None:
    source, out = folder_of(family, tmp_path / "dense"), tmp_path / "sparse"
    write_sparse(open_model(source), PATTERNS, out)
    loaded = resparsify(transformers.AutoModelForCausalLM.from_pretrained(out).eval())
    expected = sparsify(decoder(FAMILIES[family]), PATTERNS.__getitem__)
    with torch.no_grad():
        logits, same, dense = (model(TOKENS).logits for model in (loaded, expected, decoder(FAMILIES[family])))
    torch.testing.assert_close(logits, same)
    assert (logits - dense).abs().max() > 1e-3
    assert transformers.AutoTokenizer.from_pretrained(out)("low")["input_ids"]


def test_what_is_saved_there_later_does_not_reach_the_dense_model(tmp_path: Path) -> None:
    source, out = folder_of("gpt2", tmp_path / "dense"), tmp_path / "sparse"
    before = digests(source)
    write_sparse(open_model(source), PATTERNS, out)
    for path in out.rglob("*"):
        with path.open("r+b") as file:
            file.write(b"changed")
    assert digests(source) == before


def own_gpt2(folder: Path) -> Path:
    GPT2(GPT2Config(vocab_size=257, context_size=64, n_layer=2, n_head=4, n_embed=32)).save(folder)
    ByteTokenizer().save(folder)
    return folder


def test_own_gpt2_says_the_choice_itself_where_it_can(tmp_path: Path) -> None:
    model = open_model(own_gpt2(tmp_path / "dense"))
    patterns = (PerHead([(LOCAL, 3), (FAR, 1)]),) * 2
    write_sparse(model, patterns, tmp_path / "sparse")
    loaded = GPT2.load(tmp_path / "sparse")
    split = SparseAttentionConfig(3, 1, 8, 0.1, adaptive_window=False)
    assert loaded.config.use_sparse_attention and loaded.config.sparse_config == split == own_split(
        model.config, patterns
    )
    assert split.pattern(64) == patterns[0]
    theirs = resparsify(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sparse").eval())
    torch.testing.assert_close(loaded.eval()(TOKENS).logits, theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)
    assert load_tokenizer(tmp_path / "sparse").vocab_size == 257


def test_own_gpt2_stays_dense_where_its_configuration_cannot_say_the_choice(tmp_path: Path) -> None:
    model = open_model(own_gpt2(tmp_path / "dense"))
    write_sparse(model, PATTERNS, tmp_path / "sparse")
    assert own_split(model.config, PATTERNS) is None
    assert not GPT2.load(tmp_path / "sparse").config.use_sparse_attention
    assert json.loads((tmp_path / "sparse" / "config.json").read_text())["sparse_attention"]


@pytest.mark.parametrize(
    ("patterns", "split"),
    [
        ([LOCAL] * 3, (4, 0, 8, 0.1)),
        ([FAR] * 3, (0, 4, 128, 0.1)),
        ([PerHead([(LOCAL, 1), (Causal() & Strided(7), 3)])] * 3, (1, 3, 8, 1 / 7)),
        ([LOCAL, FAR], None),
        ([PerHead([(FAR, 1), (LOCAL, 3)])] * 2, None),
        ([PerHead([(LOCAL, 1), (FAR, 2), (LOCAL, 1)])] * 2, None),
        ([Causal() & Strided(10, 3)] * 2, None),
        ([STREAM] * 2, None),
        ([Causal()] * 2, None),
    ],
)
def test_a_split_means_the_patterns_or_is_none(patterns: list, split: tuple | None) -> None:
    found = document_split(patterns, 4)
    assert found == (None if split is None else SparseAttentionConfig(*split, adaptive_window=False))
    if found is not None:
        assert [found.pattern(64).for_head(h) for h in range(4)] == [patterns[0].for_head(h) for h in range(4)]


def test_what_is_there_already_is_left(tmp_path: Path) -> None:
    model = open_model(folder_of("gpt2", tmp_path / "dense"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for out in ("taken", "file"):
        with pytest.raises(FileExistsError, match="not an empty folder"):
            write_sparse(model, PATTERNS, tmp_path / out)
    assert digests(tmp_path / "taken").keys() == {"thesis.txt"}
    (tmp_path / "empty").mkdir()
    require_free(model, tmp_path / "empty")


def test_the_dense_folder_is_not_written_into(tmp_path: Path) -> None:
    source = folder_of("gpt2", tmp_path / "dense")
    (tmp_path / "link").symlink_to(source)
    before = digests(source)
    for folder in (source, tmp_path / "link"):
        with pytest.raises(ValueError, match="lies in the dense model's folder"):
            write_sparse(open_model(folder), PATTERNS, folder / "sparse")
    assert digests(source) == before


def test_a_snapshot_of_links_becomes_files(tmp_path: Path) -> None:
    """As the cache of Hugging Face holds it: every file a link to a blob elsewhere."""
    blobs, snapshot = save(decoder(FAMILIES["gpt2"]), tmp_path / "blobs"), tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    write_sparse(open_model(snapshot), PATTERNS, tmp_path / "sparse")
    assert not any(path.is_symlink() for path in (tmp_path / "sparse").iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(folder_of("gpt2", tmp_path / "dense"))

    def full(*where: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        write_sparse(model, PATTERNS, tmp_path / "sparse")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
