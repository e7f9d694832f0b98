"""Models that choose their keys themselves go on as before: checkpointing, adapters, compilers, packing, guesses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from gossamer import sparsify
from gossamer.generation_config import SamplingConfig
from gossamer.integrations.huggingface import stream
from tests.integrations.huggingface.native_models import FAMILIES, VOCABULARY, Family, every_family, every_writer

CLOSE = 1e-5


def tokens(batch: int = 2, length: int = 40) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def result(model: PreTrainedModel, ids: Tensor, **given: object) -> Tensor:
    output = model(ids, use_cache=False, **given)
    return output.logits if "logits" in output else output.last_hidden_state


def dense(family: Family) -> PreTrainedModel:
    model = family.build()
    model.set_attn_implementation("eager")
    return model


def gradients(model: PreTrainedModel, run: PreTrainedModel | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    result(model if run is None else run, tokens()).square().mean().backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def assert_equal(found: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert found.keys() == right.keys()
    for name, x in right.items():
        assert (found[name] - x).abs().max() <= 1e-4 * x.abs().max() + 1e-8, name


@every_family
def test_checkpointing_changes_no_gradient(family: Family) -> None:
    model = sparsify(family.build()).train()
    right = gradients(model)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert_equal(gradients(model), right)


@pytest.mark.slow
@every_family
def test_one_graph_trains(family: Family) -> None:
    torch.compiler.reset()
    model = sparsify(family.build()).train()
    right = gradients(model)
    assert_equal(gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True)), right)


@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES.values() if not family.pads_right],  # such a family counts from the row's first slot
    ids=lambda family: family.module,
)
@torch.no_grad()
def test_packed_sequences_are_as_if_they_came_alone(family: Family) -> None:
    ids, ours = tokens(1), sparsify(family.build())
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    packed = result(ours, ids, position_ids=positions)
    assert (packed - result(dense(family), ids, position_ids=positions)).abs().max() <= CLOSE
    assert (packed[:, 15:] - result(ours, ids[:, 15:])).abs().max() <= CLOSE


@every_writer
def test_sampled_text_is_that_of_its_own_dense_attention(family: Family) -> None:
    written = []
    for model in (dense(family), sparsify(family.build())):
        set_seed(3)
        written.append(model.generate(tokens(length=20), max_new_tokens=16, do_sample=True))
    assert torch.equal(*written)


@every_writer
def test_guesses_of_an_assistant_change_nothing(family: Family) -> None:
    """Some of them wrong, since it has less to choose from: caches keep every key, and go back."""
    fewer = {"index_topk_blocks": 1} if "index_topk_blocks" in family.sizes else {"index_topk": 2}
    prompt, settings = tokens(1, 20), {"max_new_tokens": 16, "do_sample": False}
    right = dense(family).generate(prompt, **settings)
    assistant = sparsify(family.build(**fewer))
    assert torch.equal(sparsify(family.build()).generate(prompt, assistant_model=assistant, **settings), right)


@every_writer
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_adapters_train(family: Family) -> None:
    peft = pytest.importorskip("peft")
    ids, model = tokens(), sparsify(family.build())
    right = result(model, ids)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["o_proj"]))
    assert torch.equal(result(adapted, ids), right)
    optimizer = torch.optim.Adam([x for x in adapted.train().parameters() if x.requires_grad], lr=2e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(result(adapted, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every_writer
def test_the_loop_for_patterns_refuses_it_by_name(family: Family) -> None:
    with pytest.raises(ValueError, match=r"chooses its keys itself.* write with model\.generate"):
        stream(sparsify(family.build()), [[3, 4]], SamplingConfig(2))
