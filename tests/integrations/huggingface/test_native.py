"""Models that choose their keys themselves do with our attention what they do with their own dense one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from gossamer import Causal, Window
from gossamer.integrations.huggingface import densify, is_sparse, resparsify, sparsify
from gossamer.integrations.huggingface.choosing import selects, selects_by_mask
from gossamer.integrations.huggingface.layers import Unswitchable, cache_name
from tests.integrations.huggingface.native_models import VOCABULARY, Family, every_family, every_writer

LIMIT = 1e-5


def tokens(batch: int = 2, length: int = 40) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, length))


def result(model: PreTrainedModel, ids: Tensor, **given: object) -> Tensor:
    output = model(ids, **given)
    return output.logits if "logits" in output else output.last_hidden_state


def dense_and_ours(family: Family, **changes: object) -> tuple[PreTrainedModel, PreTrainedModel]:
    dense, ours = family.build(**changes), family.build(**changes)
    dense.set_attn_implementation("eager")
    return dense, sparsify(ours)


def padded(family: Family, ids: Tensor) -> Tensor:
    """Seven tokens of the second sequence are padding, on the side where the family can have it."""
    mask = torch.ones_like(ids)
    mask[1, slice(-7, None) if family.pads_right else slice(7)] = 0
    return mask


@every_family
@torch.no_grad()
def test_the_logits_are_those_of_its_own_dense_attention(family: Family) -> None:
    ids, ours = tokens(), sparsify(family.build())
    for implementation in family.dense:
        dense = family.build()
        dense.set_attn_implementation(implementation)
        assert (result(ours, ids) - result(dense, ids)).abs().max() <= LIMIT


@every_family
@torch.no_grad()
def test_the_choice_matters(family: Family) -> None:
    """Else the other tests here would say nothing: with a choice of every key the logits are others."""
    every = {"index_topk_blocks": 64} if "index_topk_blocks" in family.sizes else {"index_topk": 64}
    ids, (dense, _), ours = tokens(), dense_and_ours(family, **every), sparsify(family.build())
    assert (result(ours, ids) - result(dense, ids)).abs().max() > 0.1


@every_family
@torch.no_grad()
def test_padding_is_seen_by_nobody(family: Family) -> None:
    dense, ours = dense_and_ours(family)
    ids = tokens()
    mask = padded(family, ids)
    got, want = (result(model, ids, attention_mask=mask) for model in (ours, dense))
    assert (got - want)[mask.bool()].abs().max() <= LIMIT
    other = torch.where(mask.bool(), ids, ids.flip(1))
    assert torch.equal(result(ours, other, attention_mask=mask)[mask.bool()], got[mask.bool()])


@every_family
@torch.no_grad()
def test_no_token_sees_a_later_one(family: Family) -> None:
    ours, ids = sparsify(family.build()), tokens(1)
    changed = torch.cat([ids[:, :30], tokens(1, 10)], dim=1)
    before, after = result(ours, ids), result(ours, changed)
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30:], after[:, 30:])


@every_family
def test_the_gradients_are_those_of_its_own_dense_attention(family: Family) -> None:
    dense, ours = dense_and_ours(family)
    ids, weight = tokens(), None
    for model in (dense, ours):
        out = result(model.train(), ids)
        weight = torch.randn_like(out) if weight is None else weight
        (out * weight).mean().backward()
    wanted = {name: x.grad for name, x in dense.named_parameters() if x.grad is not None}
    found = {name: x.grad for name, x in ours.named_parameters() if x.grad is not None}
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        assert (found[name] - want).abs().max() <= 1e-4 * want.abs().max() + 1e-8, name


@every_family
@torch.no_grad()
def test_a_cache_changes_nothing(family: Family) -> None:
    """A prompt, a piece of many tokens, then one at a time."""
    ours, ids = sparsify(family.build()), tokens()
    cache, pieces = None, []
    for piece in ids.split([20, 13, 1, 1, 1, 1, 1, 1, 1], dim=1):
        output = ours(piece, use_cache=True, **{cache_name(ours): cache})
        cache = output[cache_name(ours)]
        pieces.append(output.logits if "logits" in output else output.last_hidden_state)
    assert (torch.cat(pieces, dim=1) - result(ours, ids)).abs().max() <= LIMIT


@every_writer
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_it_writes_the_same_tokens(family: Family, settings: dict[str, object]) -> None:
    dense, ours = dense_and_ours(family)
    ids = tokens(length=20)
    mask = torch.ones_like(ids)
    if not family.pads_right:
        mask[1, :7] = 0
    written = [
        model.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False, **settings)
        for model in (dense, ours)
    ]
    assert torch.equal(*written)


@every_writer
@torch.no_grad()
def test_a_static_cache_holds_room_that_nobody_sees(family: Family) -> None:
    ours, ids = sparsify(family.build()), tokens()
    cache = StaticCache(config=ours.config, max_cache_len=64)
    first = ours(ids[:, :33], **{cache_name(ours): cache}).logits
    last = ours(ids[:, 33:], **{cache_name(ours): cache}).logits
    assert (torch.cat([first, last], dim=1) - result(ours, ids)).abs().max() <= LIMIT


@every_family
def test_it_is_saved_loaded_and_undone(family: Family, tmp_path: Path) -> None:
    ours, ids = sparsify(family.build()), tokens()
    assert is_sparse(ours) and selects(ours) and not selects_by_mask(ours)
    ours.save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path).eval()
    assert not is_sparse(loaded)
    assert is_sparse(resparsify(loaded))
    with torch.no_grad():
        assert torch.equal(result(loaded, ids), result(ours, ids))
    before = family.build().config._attn_implementation
    assert densify(sparsify(ours)).config._attn_implementation == before
    assert not hasattr(ours.config, "sparse_attention") and not is_sparse(ours)


@every_family
def test_a_pattern_is_refused(family: Family) -> None:
    with pytest.raises(Unswitchable, match="chooses its keys itself"):
        sparsify(family.build(), Causal() & Window(8))
