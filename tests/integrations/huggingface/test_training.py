"""A switched model trains as the dense one does under a mask: gradients, trainers, adapters, checkpoints, compilers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from gossamer import Causal, Pattern, sparsify
from gossamer.integrations.huggingface.layers import cache_name
from tests.integrations.huggingface.families import (
    FAMILIES,
    LAYERS,
    LENGTH,
    MIXED,
    PATTERNS,
    SPARSE,
    VOCABULARY,
    differ,
    left_padded,
    masked,
    tiny,
    tokens,
    with_positions,
)

SOME = ["gpt2", "gemma3", "gpt_oss"]
"""Families that between them have learned positions, sliding layers, ropes of two kinds and sinks."""

PEFTS_OWN = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning", "ignore:`past_key_values` is:FutureWarning"
)
"""What peft says of transformers newer than itself."""


def loss_of(model: PreTrainedModel, ids: Tensor, **given: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model(ids, **given).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gradients(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = loss_of(model, ids)
    loss.backward()
    return loss.detach(), {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def assert_equal(found: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    """Each gradient is within the tolerance of its own largest number, or of a rounding of the largest of all."""
    assert found.keys() == right.keys()
    most = max(x.abs().max().item() for x in right.values())
    for name, x in right.items():
        assert differ(found[name], x) <= tolerance * x.abs().max().item() + 1e-7 * most, name


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), MIXED], ids=[*PATTERNS, "mapping"])
def test_gradients_are_those_of_the_dense_mask(family: str, pattern: Pattern | dict[int, Pattern]) -> None:
    """In evaluation with a cache, which is the default, as well as in training."""
    ids, model = tokens(2, LENGTH), sparsify(tiny(family), pattern)
    given = pattern if isinstance(pattern, dict) else dict.fromkeys(range(LAYERS), pattern)
    loss, right = gradients(masked(family, lambda layer: given.get(layer, Causal())), ids)
    for training in (False, True):
        ours, found = gradients(model.train(training), ids)
        assert differ(ours, loss) < 1e-5
        assert_equal(found, right, 1e-4)


def test_padding_has_no_gradient(family: str) -> None:
    """The gradients of a padded batch are the sum of those of its sequences."""
    rows, model = [tokens(LENGTH - 13, seed=2), tokens(LENGTH, seed=3)], sparsify(tiny(family), SPARSE).train()
    padded = with_positions(left_padded(rows))
    logits = model(**padded).logits
    batch = [logits[row, LENGTH - len(sequence) :] for row, sequence in enumerate(rows)]
    alone = [model(sequence[None]).logits[0] for sequence in rows]
    found, right = (
        torch.autograd.grad(sum(x.square().sum() for x in each), [*model.parameters()], allow_unused=True)
        for each in (batch, alone)
    )
    names = [name for name, _ in model.named_parameters()]
    named = [{n: x for n, x in zip(names, each, strict=True) if x is not None} for each in (found, right)]
    assert_equal(*named, 1e-4)


def test_checkpointing_changes_no_gradient(family: str) -> None:
    ids, model = tokens(2, LENGTH), sparsify(tiny(family), SPARSE).train()
    loss, right = gradients(model, ids)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    for reentrant in (False, True):
        settings = {"use_reentrant": reentrant}
        enable(settings)
        model.enable_input_require_grads()
        again, found = gradients(model, ids)
        assert torch.equal(again, loss)
        assert_equal(found, right, 1e-6)


class Sequences(torch.utils.data.Dataset):
    """A few sequences, which a model can learn by heart."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        ids = tokens(LENGTH, seed=number % 4)
        return {"input_ids": ids, "labels": ids}


def trained(model: PreTrainedModel, folder: Path) -> list[float]:
    """The losses of a few steps, and of an evaluation behind them."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Sequences(), eval_dataset=Sequences())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [*losses, trainer.evaluate()["eval_loss"]]


@pytest.mark.parametrize("name", SOME)
def test_the_trainer_loses_what_the_masked_model_loses(name: str, tmp_path: Path) -> None:
    found = trained(sparsify(tiny(name), SPARSE), tmp_path / "ours")
    right = trained(masked(name, lambda layer: SPARSE), tmp_path / "theirs")
    assert found == pytest.approx(right, abs=1e-3)
    assert found[-1] < found[0] - 0.3


@PEFTS_OWN
@pytest.mark.parametrize("name", SOME)
def test_adapters_train_and_merge(name: str) -> None:
    """LoRA on a sparse model: the base stays as it is, the loss falls, and the merged model says the same."""
    peft = pytest.importorskip("peft")
    ids, model = tokens(4, LENGTH), sparsify(tiny(name), SPARSE)
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, fan_in_fan_out=name == "gpt2")
    adapted = peft.get_peft_model(model, config).train()
    before = {n: x.clone() for n, x in adapted.named_parameters() if not x.requires_grad}
    optimizer = torch.optim.Adam([x for x in adapted.parameters() if x.requires_grad], lr=2e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = loss_of(adapted, ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(x, before[n]) for n, x in adapted.named_parameters() if n in before)
    adapted.eval()
    with torch.no_grad():
        right, text = adapted(ids).logits, adapted.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
        merged = adapted.merge_and_unload()
        assert differ(merged(ids).logits, right) < 2e-5
        assert torch.equal(merged.generate(ids, max_new_tokens=5, do_sample=False), text)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_graph_trains_on_padded_batches(name: str) -> None:
    """Compiled without a break: loss and gradients of a padded batch, whose padding only the device knows."""
    torch.compiler.reset()
    model = sparsify(tiny(name), SPARSE).train()
    if name == "gpt_oss":  # transformers 5.4 cannot compile the backward of its grouped experts
        model.set_experts_implementation("batched_mm")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    padded = with_positions(left_padded([tokens(LENGTH - 13, seed=2), tokens(LENGTH, seed=3)]))
    kept = padded["attention_mask"].bool()
    losses, found = [], []
    for one in (model, compiled):
        model.zero_grad()
        loss = one(**padded).logits[kept].square().mean()
        loss.backward()
        losses.append(loss.detach())
        found.append({n: x.grad.clone() for n, x in model.named_parameters() if x.grad is not None})
    assert differ(*losses) < 1e-5
    assert_equal(found[1], found[0], 1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_one_graph_is_enough_for_the_default_call(name: str) -> None:
    """Tokens and nothing else, in evaluation: the cache that comes back keeps every key."""
    torch.compiler.reset()
    ids, model = tokens(2, LENGTH), sparsify(tiny(name), SPARSE)
    with torch.no_grad():
        out = torch.compile(model, backend="aot_eager", fullgraph=True)(ids)
        assert differ(out.logits, model(ids).logits) < 1e-5
    cache = getattr(out, cache_name(model))
    assert cache.get_seq_length() == LENGTH


def test_dropout_reaches_attention() -> None:
    """A model that drops weights out gives other logits at each training step, and the same ones in evaluation."""
    ids, model = tokens(1, LENGTH), tiny("gpt2")
    for layer in model.transformer.h:
        layer.attn.attn_dropout.p = 0.5
    sparsify(model, SPARSE)
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, sparsify(tiny("gpt2"), SPARSE)(ids).logits)


@PEFTS_OWN
def test_virtual_tokens_before_a_prompt_are_seen_and_trained() -> None:
    """Prefix tuning hands in a cache that is filled before the model ran: its keys stand before the tokens."""
    peft = pytest.importorskip("peft")
    ids, config = tokens(2, 20), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(sparsify(tiny("llama"), PATTERNS["window and sinks"]), config).train()
    mask = torch.ones_like(ids)
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert logits.shape == (2, 20, VOCABULARY)
    logits.square().mean().backward()
    assert all(x.grad.abs().max() > 0 for x in model.parameters() if x.requires_grad)
