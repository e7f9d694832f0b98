"""A GPT-2 whose layers attend to the keys that indexers choose: made of a dense one, saved, read and written with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gossamer import generate
from gossamer.config import GPT2Config, IndexerConfig, RotaryConfig, SparseAttentionConfig
from gossamer.convert import open_model
from gossamer.models.gpt2 import GPT2
from gossamer.nn.cache import KVCache
from gossamer.nn.indexed import IndexedAttention

INDEXER = IndexerConfig(index_n_heads=2, index_head_dim=16, index_topk=6, qk_rope_head_dim=8)
DENSE = GPT2Config(vocab_size=97, context_size=64, n_layer=2, n_head=3, n_embed=48)


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["learned", "rotary"])
def dense(request: pytest.FixtureRequest, tmp_path: Path) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(replace(DENSE, positions=request.param)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that attention matters
    model.save(tmp_path / "dense")
    return model


def test_a_dense_model_with_indexers_that_choose_all_answers_as_it_did(
    dense: GPT2, text: torch.Tensor, tmp_path: Path
) -> None:
    whole = GPT2.load(tmp_path / "dense", indexer=replace(INDEXER, index_topk=40)).eval()
    assert all(isinstance(block.attn, IndexedAttention) for block in whole.h)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in dense.state_dict().items())
    expected = dense(text).logits
    torch.testing.assert_close(whole(text).logits, expected, rtol=0, atol=1e-4)
    few = GPT2.load(tmp_path / "dense", indexer=INDEXER).eval()
    found = few(text).logits
    torch.testing.assert_close(found[:, :6], expected[:, :6], rtol=0, atol=1e-4)  # they see no more than 6 keys
    assert (found - expected)[:, 6:].abs().max() > 1e-2


def test_new_indexers_are_drawn_from_torch_s_generator(dense: GPT2, tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(GPT2.load(tmp_path / "dense", indexer=INDEXER).h[1].attn.indexer)
    first, again, other = (indexer.wk.weight for indexer in drawn)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.02, rel=0.1) and drawn[0].k_norm.weight.eq(1).all()


def test_indexers_are_saved_and_read(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    model = GPT2.load(tmp_path / "dense", indexer=replace(INDEXER, rotary=RotaryConfig(interleaved=True))).eval()
    model.save(tmp_path / "indexed")
    read = GPT2.load(tmp_path / "indexed").eval()
    assert read.config == model.config and torch.equal(read(text).logits, model(text).logits)
    more = GPT2.load(tmp_path / "indexed", indexer=replace(model.config.indexer, index_topk=40)).eval()
    torch.testing.assert_close(more(text).logits, dense(text).logits, rtol=0, atol=1e-4)
    assert torch.equal(more.h[0].attn.indexer.wk.weight, model.h[0].attn.indexer.wk.weight)
    with pytest.raises(ValueError, match=r"h\.0\.attn\.indexer\.wq_b.weight is \[32, 48\].*give its own index_n_heads"):
        GPT2.load(tmp_path / "indexed", indexer=replace(INDEXER, index_n_heads=3))
    with pytest.raises(ValueError, match="is sparse already: its indexer is IndexerConfig"):
        open_model(tmp_path / "indexed")


def test_transformers_does_not_take_it_for_its_own(dense: GPT2, tmp_path: Path) -> None:
    GPT2.load(tmp_path / "dense", indexer=INDEXER).save(tmp_path / "indexed")
    stated = json.loads((tmp_path / "indexed" / "config.json").read_text())
    assert stated["model_type"] == "gossamer_indexed_gpt2" and stated["architectures"] == ["GossamerIndexedGPT2"]


def test_a_sparse_model_gets_no_indexers(tmp_path: Path) -> None:
    heads = SparseAttentionConfig(local_heads=2, global_heads=1)
    GPT2(replace(DENSE, use_sparse_attention=True, sparse_config=heads)).save(tmp_path)
    with pytest.raises(ValueError, match="use_sparse_attention is True; leave it out where there is an indexer"):
        GPT2.load(tmp_path, indexer=INDEXER)


@torch.no_grad()
def test_pieces_with_a_cache_are_the_whole(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    model = GPT2.load(tmp_path / "dense", indexer=INDEXER).eval()
    cache, found = KVCache(64), []
    for piece in text.split([17, 1, 1, 11, 10], dim=1):
        found.append(model(piece, cache=cache).logits)
    torch.testing.assert_close(torch.cat(found, 1), model(text).logits, rtol=0, atol=1e-4)
    written = generate(model, text[:, :20], max_new_tokens=12, temperature=0)
    again = text[:, :20]
    for _ in range(12):
        again = torch.cat([again, model(again).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, again)


def test_no_token_sees_a_later_one(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    model, changed = GPT2.load(tmp_path / "dense", indexer=INDEXER).eval(), text.clone()
    changed[:, 25:] = (changed[:, 25:] + 1) % 97
    before, after = model(text).logits, model(changed).logits
    assert torch.equal(before[:, :25], after[:, :25]) and not torch.equal(before[:, 25], after[:, 25])


def test_indexers_losses_are_given_where_they_are_asked_for(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    model = GPT2.load(tmp_path / "dense", indexer=INDEXER)
    found = model(text, text, indexer_losses=True)
    assert found.indexer_losses.shape == (2,) and (found.indexer_losses > 0).all() and found.intermediates is None
    assert torch.equal(found.loss, model(text, text).loss) and model(text, text).indexer_losses is None
    captures = model(text, return_intermediate=True).intermediates
    assert [seen.selection.indices.shape for seen in captures] == [(2, 1, 40, 6)] * 2
    with pytest.raises(ValueError, match=r"indexer_losses are of a model with GPT2Config\(indexer=...\)"):
        dense(text, text, indexer_losses=True)
    with pytest.raises(ValueError, match="without return_intermediate"):
        model(text, text, indexer_losses=True, return_intermediate=True)
