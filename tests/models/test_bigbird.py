"""BigBird against transformers', from the same files: features, heads, losses, gradients; and where they differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
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
from gossamer.nn import BigBirdAttention
from tests.bigbird_of_transformers import config, drawn_by
from tests.encoders_of_transformers import as_theirs, gradients, largest, logits_of

PAD, SEP, VOCABULARY = 0, 2, 50
CLASSES = {
    "pooler": BigBirdModel,
    "masked_lm": BigBirdForMaskedLM,
    "classification": BigBirdForSequenceClassification,
    "question_answering": BigBirdForQuestionAnswering,
}
WITH_LOSS = ["masked_lm", "classification", "question_answering"]
SPARSE = [37, 50, 60]
"""Lengths at which theirs is sparse: it needs more than 9 blocks."""


@pytest.fixture
def both(tmp_path):
    """Theirs and ours with the same weights, in training; NumPy's generator is kept."""
    before = np.random.get_state()

    def make(head="pooler", **settings):
        torch.manual_seed(3)
        labels = 2 if head == "question_answering" else 3
        model = CLASSES[head](config(initializer_range=0.2, num_labels=labels, **settings)).train()
        model.save_pretrained(tmp_path)
        return model, BigBird.from_pretrained(tmp_path, head=head).train()

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
        given = None if padding == "none" else mask
        found = ours(tokens, attention_mask=given, random_blocks=drawn_by(model, length), return_layers=True)
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
def test_other_shapes_are_theirs(both, settings):
    model, ours = both(**settings)
    with torch.no_grad():
        found = ours(text(), random_blocks=drawn_by(model, 60)).features
        assert largest(found, model(text()).last_hidden_state) <= 1e-5


def test_the_paper_s_first_lengths_are_theirs(both):
    """At 3,072 tokens theirs draws from the first 1,024."""
    model, ours = both(block_size=64, max_position_embeddings=4096, num_hidden_layers=1)
    tokens = text(3072, batch=1)
    with torch.no_grad():
        found = ours(tokens, random_blocks=drawn_by(model, 3072)).features
        assert largest(found, model(tokens).last_hidden_state) <= 1e-5


def test_token_types_and_positions_are_theirs(both):
    model, ours = both(type_vocab_size=3)
    tokens, kinds, places = text(), torch.randint(3, (3, 60)), torch.randint(100, (3, 60))
    with torch.no_grad():
        right = model(tokens, token_type_ids=kinds, position_ids=places).last_hidden_state
        found = ours(tokens, token_type_ids=kinds, position_ids=places, random_blocks=drawn_by(model, 60)).features
        assert largest(found, right) <= 1e-5


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
    handed = masks | {"random_blocks": drawn_by(model, 57)}
    found, wanted = ours(tokens, **handed).logits, logits_of(head, right)
    if head == "question_answering":
        assert torch.equal(found == -torch.inf, wanted < -9e5)
        wanted = wanted.masked_fill(wanted < -9e5, -torch.inf)
    real = (found != -torch.inf) if head == "classification" else (found != -torch.inf) & (mask > 0)[..., None]
    assert largest(found[real], wanted[real]) <= 1e-5
    if padding and head == "question_answering":
        return  # their softmax goes over padding, to which no row of ours is equal
    loss = ours(tokens, targets, **handed).loss
    assert loss.item() == pytest.approx(right.loss.item(), rel=1e-5)
    right.loss.backward()
    loss.backward()
    check_gradients(model, ours, head)


def check_gradients(model, ours, head):
    found = {FAMILY.stored_name(name, head): p.grad for name, p in ours.named_parameters()}
    wanted = {name.removeprefix(FAMILY.prefix): p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert wanted.keys() == {name for name, gradient in found.items() if gradient is not None}
    greatest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():  # keys' biases change no softmax: their gradients are nothing but rounding
        assert largest(found[name], gradient) <= 1e-4 * gradient.abs().max().clamp(min=1e-3 * greatest), name


@pytest.mark.parametrize("length", [5, 30, 60])
@pytest.mark.parametrize("head", WITH_LOSS)
def test_full_attention_is_theirs_at_any_length(both, length, head):
    model, ours = both(head, attention_type="original_full")
    tokens, mask = text(length), torch.ones(3, length, dtype=torch.int64)
    with torch.no_grad():
        found, wanted = ours(tokens, attention_mask=mask).logits, logits_of(head, model(tokens, mask))
    real = found != -torch.inf
    assert largest(found[real], wanted[real]) <= 1e-5


# What transformers' BigBird does otherwise.


def test_a_short_text_stays_sparse(both):
    """Theirs becomes full attention up to 5 + 2 · random blocks, and stays so for every later text."""
    model, ours = both()
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


def test_numpy_s_generator_is_left_alone(both):
    """Each call of theirs in training seeds it anew."""
    model, ours = both("classification")

    def state():
        kind, *numbers = np.random.get_state()
        return kind, *(tuple(np.atleast_1d(each)) for each in numbers)

    np.random.seed(123)
    before = state()
    ours(text(), torch.tensor([0, 1, 2])).loss.backward()
    ours.eval()(text())
    own().train()(text())
    assert state() == before
    model.eval()(text())
    assert state() == before  # since it draws nothing in evaluation
    model.train()(text())
    assert state() != before


def test_padding_in_front_moves_no_classification(both):
    """Theirs reads the logits off a padding token."""
    _, ours = both("classification", attention_type="original_full")
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


def test_where_the_random_blocks_are_drawn_is_said_at_loading(tmp_path):
    """A file of transformers says neither; the release drew among the first 1,024 tokens."""
    BigBirdModel(config()).save_pretrained(tmp_path)
    stated = BigBird.from_pretrained(tmp_path).config
    assert (stated.random_among, stated.random_seed) == (None, 0)
    model = BigBird.from_pretrained(tmp_path, random_among=6, random_seed=5)
    assert model.config == replace(stated, random_among=6, random_seed=5)
    attention = BigBirdAttention(model.config, layer=1)
    assert model.blocks[1].attention.pattern(60) == attention.pattern(60)
    model.save_pretrained(tmp_path)
    assert BigBird.from_pretrained(tmp_path).config == model.config
    assert BigBird.from_pretrained(tmp_path, random_seed=0).config == replace(stated, random_among=6)
    with pytest.raises(ValueError, match="BigBirdConfig: random_among is 0; give"):
        BigBird.from_pretrained(tmp_path, random_among=0)


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


@pytest.mark.parametrize("head", [None, "pooler", "classification"])
def test_it_compiles_whole(head):
    """PyTorch 2.11 fails at outputs that are made by changing another."""
    model = own(head).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for found, right in zip(compiled(text()), model(text()), strict=True):
        assert (found is None) == (right is None)
        if found is not None:
            torch.testing.assert_close(found, right)


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


def test_random_blocks_are_handed_to_their_layers():
    """One entry a layer, arrays or tensors; None leaves a layer what it draws."""
    model = own().eval()
    blocks = np.random.default_rng(0).integers(15, size=(2, 2, 13, 2))

    def layers(random_blocks):
        with torch.no_grad():
            return model(text(60), random_blocks=random_blocks, return_layers=True).layers

    drawn, both, second = layers(None), layers(list(blocks)), layers([None, torch.from_numpy(blocks[1])])
    assert largest(both[1], drawn[1]) > 1e-3
    assert torch.equal(second[1], drawn[1]) and largest(second[2], drawn[2]) > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(layers(torch.from_numpy(blocks)), both, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(layers([None, None]), drawn, strict=True))


def test_checkpointing_hands_random_blocks_over_again():
    model, targets = own("classification").double(), torch.tensor([0, 1, 1])
    blocks = np.random.default_rng(0).integers(15, size=(2, 2, 13, 2))

    def gradient():
        model.zero_grad()
        model(text(), targets, random_blocks=blocks).loss.backward()
        return model.blocks[0].attention.value.weight.grad.clone()

    kept, model.checkpointing = gradient(), True
    assert torch.equal(gradient(), kept)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (np.zeros((3, 2, 13, 2), int), "random_blocks has 3 entries for 2 layers; give one a layer, or None for all"),
        ([None, np.zeros((2, 12, 2), int)], r"random_blocks has shape \(2, 12, 2\) .* in layer 1; give integers"),
        ([None, np.full((2, 13, 2), 15)], r"int64, 15 to 15 in layer 1; give integers .* each from 0 to 14"),
    ],
)
def test_random_blocks_are_refused_before_anything_is_computed(blocks, message):
    model = own()
    model.embeddings.register_forward_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        model(text(60), random_blocks=blocks)


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
