"""BigBird against transformers', from the same files: features, heads, losses, gradients; and where they differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BigBirdForMaskedLM,
    BigBirdForPreTraining,
    BigBirdForQuestionAnswering,
    BigBirdForSequenceClassification,
    BigBirdModel,
)

from gossamer import models
from gossamer.config import BigBirdConfig
from gossamer.models.bigbird import FAMILY, BigBird
from tests.bigbird_of_transformers import config, drawn_blocks
from tests.encoders_of_transformers import as_theirs, gradients, largest, logits_of

PAD, SEP, VOCABULARY, BLOCK = 0, 2, 50, 4
CLASSES = {
    "pooler": BigBirdModel,
    "masked_lm": BigBirdForMaskedLM,
    "classification": BigBirdForSequenceClassification,
    "question_answering": BigBirdForQuestionAnswering,
}
WITH_LOSS = ["masked_lm", "classification", "question_answering"]
SPARSE = [37, 50, 60]
"""Lengths at which theirs is sparse: it needs more than 9 blocks."""


class Handed(nn.Module):
    """Our attention with the random blocks that theirs draws."""

    def __init__(self, own: nn.Module, theirs: nn.Module):
        super().__init__()
        self.own, self.theirs = own, [theirs]

    def forward(self, x: Tensor, within: Tensor | None = None) -> Tensor:
        return self.own(x, within, drawn_blocks(self.theirs[0], x.shape[1] + -x.shape[1] % BLOCK))


def hand_over(ours: BigBird, theirs: nn.Module) -> None:
    """From here on `ours` sees what `theirs` draws in training."""
    body = theirs if isinstance(theirs, BigBirdModel) else theirs.bert
    for block, layer in zip(ours.blocks, body.encoder.layer, strict=True):
        block.attention = Handed(block.attention, layer.attention.self)


@pytest.fixture
def both(tmp_path):
    """Theirs and ours with the same weights, in training, with the same random blocks; NumPy's generator is kept."""
    before = np.random.get_state()

    def make(head="pooler", handed=True, **settings):
        torch.manual_seed(3)
        labels = 2 if head == "question_answering" else 3
        model = CLASSES[head](config(initializer_range=0.2, num_labels=labels, **settings)).train()
        model.save_pretrained(tmp_path)
        ours = BigBird.from_pretrained(tmp_path, head=head).train()
        if handed:
            hand_over(ours, model)
        return model, ours

    yield make
    np.random.set_state(before)


def text(length=60, batch=3):
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    tokens[:, [length // 4, length - 4]] = SEP
    return tokens


def padded(tokens, before=0):
    """Rows of other lengths, and which of their tokens are real."""
    mask = torch.ones_like(tokens)
    mask[1, tokens.shape[1] - 7 :] = 0
    mask[2, :before] = 0
    return tokens.masked_fill(mask == 0, PAD), mask


@pytest.mark.parametrize("length", SPARSE)
@pytest.mark.parametrize("padding", ["none", "right", "both sides"])
def test_every_layer_is_theirs(both, length, padding):
    model, ours = both()
    tokens, mask = text(length), torch.ones(3, length, dtype=torch.int64)
    if padding != "none":
        tokens, mask = padded(tokens, before=6 if padding == "both sides" else 0)
    with torch.no_grad():
        right = model(tokens, mask, output_hidden_states=True)
        found = ours(tokens, attention_mask=None if padding == "none" else mask, return_layers=True)
    for layer, wanted in zip(found.layers, right.hidden_states, strict=True):
        assert largest(layer[mask > 0], wanted[:, :length][mask > 0]) <= 1e-5
    assert torch.equal(found.features, found.layers[-1])
    if padding != "both sides":
        assert largest(found.pooled, right.pooler_output) <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"use_bias": False},
        {"rescale_embeddings": True},
        {"hidden_act": "relu"},
        {"num_attention_heads": 4},
        {"num_random_blocks": 3},
        {"block_size": 2},
    ],
    ids=str,
)
def test_other_shapes_are_theirs(both, settings, monkeypatch):
    monkeypatch.setattr("tests.models.test_bigbird.BLOCK", settings.get("block_size", BLOCK))
    model, ours = both(**settings)
    with torch.no_grad():
        assert largest(ours(text()).features, model(text()).last_hidden_state) <= 1e-5


def test_the_paper_s_first_lengths_are_theirs(both, monkeypatch):
    """At 3,072 tokens theirs draws from the first 1,024."""
    monkeypatch.setattr("tests.models.test_bigbird.BLOCK", 64)
    model, ours = both(block_size=64, max_position_embeddings=4096, num_hidden_layers=1)
    tokens = text(3072, batch=1)
    with torch.no_grad():
        assert largest(ours(tokens).features, model(tokens).last_hidden_state) <= 1e-5


def test_token_types_and_positions_are_theirs(both):
    model, ours = both(type_vocab_size=3)
    tokens, kinds, places = text(), torch.randint(3, (3, 60)), torch.randint(100, (3, 60))
    with torch.no_grad():
        right = model(tokens, token_type_ids=kinds, position_ids=places).last_hidden_state
        assert largest(ours(tokens, token_type_ids=kinds, position_ids=places).features, right) <= 1e-5


def targets_of(head, tokens):
    match head:
        case "masked_lm":
            return torch.where(torch.rand(tokens.shape) < 0.3, tokens, -100)
        case "classification":
            return torch.tensor([2, 0, 1])
        case "question_answering":
            return torch.tensor([[30, 35], [0, 42], [33, 99]])  # 99 is outside: no part of the mean


@pytest.mark.parametrize("head", WITH_LOSS)
@pytest.mark.parametrize("padding", [False, True])
def test_heads_have_their_logits_loss_and_gradients(both, head, padding):
    model, ours = both(head)
    tokens, masks = text(57), {}
    mask = torch.ones_like(tokens)
    if padding:
        tokens, mask = padded(tokens)
        masks = {"attention_mask": mask}
    targets = targets_of(head, tokens)
    if head == "masked_lm":
        targets = targets.masked_fill(mask == 0, -100)
    right = model(tokens, **masks, **as_theirs(head, targets))
    found, wanted = ours(tokens, **masks).logits, logits_of(head, right)
    if head == "question_answering":
        assert torch.equal(found == -torch.inf, wanted < -9e5)
        wanted = wanted.masked_fill(wanted < -9e5, -torch.inf)
    real = (found != -torch.inf) if head == "classification" else (found != -torch.inf) & (mask > 0)[..., None]
    assert largest(found[real], wanted[real]) <= 1e-5
    if padding and head == "question_answering":
        return  # their softmax goes over padding, to which no row of ours is equal
    loss = ours(tokens, targets, **masks).loss
    assert loss.item() == pytest.approx(right.loss.item(), rel=1e-5)
    right.loss.backward()
    loss.backward()
    check_gradients(model, ours, head)


def check_gradients(model, ours, head):
    named = {name.replace(".attention.own.", ".attention."): p.grad for name, p in ours.named_parameters()}
    found = {FAMILY.stored_name(name, head): gradient for name, gradient in named.items()}
    wanted = {name.removeprefix(FAMILY.prefix): p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert wanted.keys() == {name for name, gradient in found.items() if gradient is not None}
    greatest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():  # keys' biases change no softmax: their gradients are nothing but rounding
        assert largest(found[name], gradient) <= 1e-4 * gradient.abs().max().clamp(min=1e-3 * greatest), name


@pytest.mark.parametrize("length", [5, 30, 60])
@pytest.mark.parametrize("head", WITH_LOSS)
def test_full_attention_is_theirs_at_any_length(both, length, head):
    model, ours = both(head, handed=False, attention_type="original_full")
    tokens, mask = text(length), torch.ones(3, length, dtype=torch.int64)
    with torch.no_grad():
        found, wanted = ours(tokens, attention_mask=mask).logits, logits_of(head, model(tokens, mask))
    real = found != -torch.inf
    assert largest(found[real], wanted[real]) <= 1e-5


# What transformers' BigBird does otherwise.


def test_a_short_text_stays_sparse(both):
    """Theirs becomes full attention up to 5 + 2 · random blocks, and stays so for every later text."""
    model, ours = both(handed=False)
    with torch.no_grad():
        before = model(text(60)).last_hidden_state
        assert largest(ours(text(16)).features, model(text(16)).last_hidden_state) <= 1e-5  # full here as well
        assert model.attention_type == "original_full"
        assert largest(ours(text(30)).features[:, :4], model(text(30)).last_hidden_state[:, :4]) > 1e-3
        assert largest(model(text(60)).last_hidden_state, before) > 1e-3


def test_evaluation_is_training(both):
    """Theirs has no random blocks in evaluation, and counts the first block once more for each."""
    model, ours = both()
    with torch.no_grad():
        trained, theirs = ours(text()).features, model(text()).last_hidden_state
        assert torch.equal(ours.eval()(text()).features, trained)
        assert largest(model.eval()(text()).last_hidden_state, theirs) > 1e-3


def test_padding_in_front_moves_no_classification(both):
    """Theirs reads the logits off a padding token."""
    _, ours = both("classification", handed=False, attention_type="original_full")
    tokens, shifted = text(20, 1), torch.cat([torch.zeros(1, 3, dtype=torch.int64), text(20, 1)], 1)
    places = torch.arange(-3, 20).clamp(min=0)[None]
    with torch.no_grad():
        found = ours(shifted, attention_mask=(shifted != PAD).long(), position_ids=places).logits
        assert largest(found, ours(tokens).logits) <= 1e-5


def test_an_answer_in_the_question_has_no_loss():
    """Theirs has one of about a million."""
    model = own("question_answering")
    tokens = text(40)
    assert model(tokens, torch.tensor([[3, 5]] * 3)).loss == 0
    assert 0 < model(tokens, torch.tensor([[0, 12]] * 3)).loss < 20
    (model(tokens, torch.tensor([[3, 30]] * 3)).loss).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# Files.


@pytest.mark.parametrize("head", CLASSES)
def test_files_are_theirs_both_ways(tmp_path, head):
    ours = own(head, random_seed=5, random_among=3)
    ours.save_pretrained(tmp_path)
    model, report = CLASSES[head].from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all("pooler" in name for name in report["missing_keys"])
    again = BigBird.from_pretrained(tmp_path, head=head)
    assert again.config == ours.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert torch.equal(model.get_input_embeddings().weight, ours.embeddings.tokens.weight)


@pytest.mark.parametrize("head", [None, "pooler", "masked_lm"])
def test_a_pre_training_file_is_read_in_shards(tmp_path, head):
    """The released weights are of this class, with a task of next sentences beside."""
    model = BigBirdForPreTraining(config()).eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = BigBird.from_pretrained(tmp_path, head=head).eval()
    with torch.no_grad():
        found, right = ours(text(16)), model(text(16), output_hidden_states=True)
    assert largest(found.features, right.hidden_states[-1]) <= 1e-5
    if head == "masked_lm":
        assert largest(found.logits, right.prediction_logits) <= 1e-5
    with pytest.raises(ValueError, match="is missing"):
        BigBird.from_pretrained(tmp_path, head="classification")
    assert BigBird.from_pretrained(tmp_path, head="classification", new_head=True)(text(16)).logits.shape == (3, 2)


# The model by itself.


def own(head=None, **settings):
    torch.manual_seed(0)
    shape = config().to_dict()
    given = {name: shape[name] for name in BigBirdConfig.__dataclass_fields__ if name in shape}
    return BigBird(BigBirdConfig(**given | {"initializer_range": 0.2} | settings), head)


def test_layers_heads_and_seeds_see_other_blocks():
    first, again, other = own(), own(), own(random_seed=1)
    patterns = [block.attention.pattern(60) for model in (first, again, other) for block in model.blocks]
    assert patterns[:2] == patterns[2:4]
    assert len({str(pattern) for pattern in patterns}) == 4


def test_embeddings_are_dropped_from_before_the_norm():
    """As in transformers: what comes out is normalised in training too."""
    embeddings = own(hidden_dropout_prob=0.5).embeddings.train()
    out, again = embeddings(text()), embeddings(text())
    assert not torch.equal(out, again)
    assert out.mean(-1).abs().max() < 1e-5
    assert (out.var(-1, correction=0) - 1).abs().max() < 1e-4


def test_extra_tokens_reach_everyone_in_one_layer():
    model = own(extra_tokens=5, num_hidden_layers=1).eval()
    tokens = text(60, 1)
    tokens[:, :5] = 7

    def changed(place):
        other = tokens.clone()
        other[:, place] += 1
        with torch.no_grad():
            return (model(other).features != model(tokens).features).any(-1)[0]

    assert changed(2).all()
    reached = changed(30).nonzero()[:, 0].tolist()  # the seventh block after the five, and its neighbours
    assert reached == [*range(5), *range(25, 37)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout):
    model = own("classification", hidden_dropout_prob=dropout).double()
    tokens, targets = text(), torch.tensor([0, 1, 1])
    torch.manual_seed(5)
    kept = gradients(model, tokens, targets)
    model.checkpointing = True
    torch.manual_seed(5)
    again = gradients(model, tokens, targets)
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


def test_a_few_steps_learn_a_text_by_heart():
    model, tokens = own("masked_lm", initializer_range=0.02), text(50, 2)
    targets = torch.where(torch.arange(50) % 4 == 1, tokens, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(tokens.masked_fill(targets >= 0, 5), targets).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.2


def test_refusals():
    with pytest.raises(ValueError, match="BigBird: head is 'lm'; give pooler, "):
        own("lm")
    with pytest.raises(ValueError, match="129 tokens, but positions for 128 alone"):
        own()(torch.ones(1, 129, dtype=torch.int64))
    for name, value in (("random_among", 0), ("extra_tokens", -1), ("random_seed", 2**31), ("block_size", 0)):
        with pytest.raises(ValueError, match=f"BigBirdConfig: {name} is {value}; give"):
            BigBirdConfig(**{name: value})


def test_it_can_be_found():
    assert models.BigBird is BigBird
