"""`LightningIndexer`: it chooses what transformers' indexers choose, step by step too, and teaches nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gossamer.config import IndexerConfig, RotaryConfig
from gossamer.config.indexer import PRECISIONS as CONFIGURED
from gossamer.nn import KVCache, LightningIndexer
from gossamer.nn.indexer import Projected
from gossamer.nn.positions import positions
from gossamer.selectors.quantized import PRECISIONS

WIDTH, RANK, TOKENS = 48, 24, 60
SHAPE = IndexerConfig(index_n_heads=16, index_head_dim=32, index_topk=9, qk_rope_head_dim=16)
LAYOUTS = {"deepseek_v32": False, "glm_moe_dsa": True}


def theirs_and_ours(family: str, shape: IndexerConfig = SHAPE) -> tuple[nn.Module, nn.Module, LightningIndexer]:
    """(indexer of transformers, its rotary embedding, ours with the same weights)"""
    transformers = pytest.importorskip("transformers")
    module = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    name = {"deepseek_v32": "DeepseekV32", "glm_moe_dsa": "GlmMoeDsa"}[family]
    config = getattr(transformers, f"{name}Config")(
        hidden_size=WIDTH, q_lora_rank=RANK, index_n_heads=shape.index_n_heads, index_head_dim=shape.index_head_dim,
        index_topk=shape.index_topk, qk_rope_head_dim=shape.qk_rope_head_dim, num_hidden_layers=1,
    )  # fmt: skip
    theirs = getattr(module, f"{name}Indexer")(config, 0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    rotary = RotaryConfig(config.rope_parameters["rope_theta"], LAYOUTS[family])
    ours = LightningIndexer(WIDTH, RANK, replace(shape, rotary=rotary))
    ours.load_state_dict(theirs.state_dict())
    return theirs, getattr(module, f"{name}RotaryEmbedding")(config), ours


def their_choice(theirs: nn.Module, rotary: nn.Module, x: Tensor, source: Tensor) -> list[list[set[int]]]:
    at = torch.arange(x.shape[1])[None]
    seen = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril()
    found = theirs(x, source, rotary(x, at), seen, at)
    return [[{key for key in row if key <= t} for t, row in enumerate(rows)] for rows in found.tolist()]


def sets(found: Tensor) -> list[list[set[int]]]:
    return [[set(row) - {-1} for row in rows] for rows in found.tolist()]


@pytest.mark.parametrize("family", LAYOUTS)
def test_it_chooses_what_transformers_chooses(family: str) -> None:
    theirs, rotary, ours = theirs_and_ours(family)
    x, source = torch.randn(3, TOKENS, WIDTH), torch.randn(3, TOKENS, RANK)
    assert sets(ours(x, source)) == their_choice(theirs, rotary, x, source)


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_other_layout_of_the_rotation_chooses_other_keys(family: str) -> None:
    theirs, rotary, ours = theirs_and_ours(family)
    x, source = torch.randn(1, TOKENS, WIDTH), torch.randn(1, TOKENS, RANK)
    ours.config = replace(ours.config, rotary=replace(ours.config.rotary, interleaved=not LAYOUTS[family]))
    found, right = sets(ours(x, source))[0], their_choice(theirs, rotary, x, source)[0]
    assert sum(a != b for a, b in zip(found, right, strict=True)) > TOKENS // 2


def indexer(shape: IndexerConfig = SHAPE, query_width: int = WIDTH) -> LightningIndexer:
    made = LightningIndexer(WIDTH, query_width, shape)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("piece", [1, 7, TOKENS])
def test_decoding_chooses_what_the_whole_sequence_chooses(piece: int) -> None:
    ours, x, cache = indexer().double(), torch.randn(2, TOKENS, WIDTH).double(), KVCache(TOKENS)
    whole, steps = sets(ours(x)), []
    for part in x.split(piece, 1):
        steps.append(sets(ours(part, cache=cache, layer=3)))
        cache.advance(part.shape[1])
    assert [[one for step in steps for one in step[row]] for row in range(2)] == whole


def test_the_last_query_stands_at_the_last_key() -> None:
    ours, x = indexer().double(), torch.randn(1, TOKENS, WIDTH).double()
    made = ours.project(x, None, positions(TOKENS, None, x.device))
    last = ours.choose(made.q[:, :, -4:], made.k, made.weights[:, -4:])
    assert torch.equal(last, ours(x)[:, -4:])


def test_a_hadamard_rotation_changes_no_score() -> None:
    shape, x = replace(SHAPE, hadamard=True), torch.randn(1, TOKENS, WIDTH).double()
    plain, turned = indexer().double(), indexer(shape).double()
    turned.load_state_dict(plain.state_dict())
    at = positions(TOKENS, None, x.device)
    before, after = plain.project(x, None, at), turned.project(x, None, at)
    assert not torch.allclose(before.k, after.k)
    torch.testing.assert_close(after.q @ after.k[:, None].mT, before.q @ before.k[:, None].mT)
    assert sets(plain(x)) == sets(turned(x))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("precision", ["fp8", "fp8 ue8m0"])
def test_eight_bits_choose_nearly_the_same(precision: str, turned: bool) -> None:
    shape, x = replace(SHAPE, index_topk=24), torch.randn(1, 200, WIDTH)
    plain, rounded = indexer(shape), indexer(replace(shape, precision=precision, hadamard=turned))
    rounded.load_state_dict(plain.state_dict())
    right, found = sets(plain(x))[0], sets(rounded(x))[0]
    assert found != right
    assert sum(len(a & b) for a, b in zip(found, right, strict=True)) > 0.9 * sum(map(len, right))


def test_no_gradient_reaches_what_it_is_given() -> None:
    ours = indexer(query_width=RANK)
    x, source = torch.randn(1, TOKENS, WIDTH, requires_grad=True), torch.randn(1, TOKENS, RANK, requires_grad=True)
    made = ours.project(x, source, positions(TOKENS, None, x.device))
    assert isinstance(made, Projected)
    sum(part.square().sum() for part in made).backward()
    assert x.grad is None and source.grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in ours.parameters())


def test_head_weights_are_scaled_and_of_any_sign() -> None:
    ours, x = indexer(), torch.randn(1, TOKENS, WIDTH)
    made = ours.bfloat16().weights(x.bfloat16())
    assert made.dtype == torch.float32 and (made < 0).any()
    right = (x.bfloat16().double() @ ours.weights_proj.weight.double().T) / (16 * 32) ** 0.5
    torch.testing.assert_close(made.double(), right, rtol=1e-5, atol=1e-6)  # in bfloat16 they would be 4e-3 off


def test_weights_may_stay_in_float32() -> None:
    ours, x = indexer().bfloat16(), torch.randn(1, TOKENS, WIDTH).bfloat16()
    ours.weights_proj.float()
    assert ours(x).shape == (1, TOKENS, 9)
    torch.testing.assert_close(ours.weights(x), (x.float() @ ours.weights_proj.weight.T) / (16 * 32) ** 0.5)


def test_autocast_rounds_no_weight_of_a_head() -> None:
    ours, x = indexer(), torch.randn(1, TOKENS, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours.weights(x)
    assert torch.equal(found, ours.weights(x))


def test_what_it_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="query_width is 0"):
        LightningIndexer(8, 0, SHAPE)
    with pytest.raises(ValueError, match="config is 3; give an IndexerConfig"):
        LightningIndexer(8, 8, 3)
    with pytest.raises(ValueError, match="cache has padding"):
        indexer()(torch.zeros(2, 3, WIDTH), cache=KVCache(9, padding=(0, 1)))
    for settings, message in (
        ({"precision": "fp4"}, "precision is 'fp4'"),
        ({"hadamard": 1}, "hadamard is 1; give True or False"),
        ({"hadamard": True, "index_head_dim": 96}, "index_head_dim is 96; hadamard takes a power of two"),
    ):
        with pytest.raises(ValueError, match=message):
            IndexerConfig(**settings)


def test_the_configuration_knows_every_precision() -> None:
    assert CONFIGURED == PRECISIONS
