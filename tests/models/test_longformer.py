"""Longformer against transformers', from the same files: features, heads, losses, gradients; and where they differ."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerModel,
)

from gossamer.config import LongformerConfig
from gossamer.models.longformer import FAMILY, Longformer
from tests.encoders_of_transformers import as_theirs, gradients, largest, logits_of

PAD, SEP, VOCABULARY = 1, 2, 99
THEIRS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 74,
    "attention_window": [4, 8],
    "initializer_range": 0.2,
}
CLASSES = {
    "pooler": LongformerModel,
    "masked_lm": LongformerForMaskedLM,
    "classification": LongformerForSequenceClassification,
    "question_answering": LongformerForQuestionAnswering,
}
heads = pytest.mark.parametrize("head", CLASSES)


def labels(head):
    return {"num_labels": 2 if head == "question_answering" else 3}


def theirs(head="pooler", **settings):
    return CLASSES[head](transformers.LongformerConfig(**THEIRS | labels(head) | settings)).eval()


@pytest.fixture
def both(tmp_path):
    def make(head="pooler", **settings):
        model = theirs(head, **settings)
        model.save_pretrained(tmp_path)
        return model, Longformer.from_pretrained(tmp_path, head=head).eval()

    return make


def text(length=21, batch=3):
    tokens = torch.randint(3, VOCABULARY, (batch, length))
    tokens[:, [length // 4, length // 4 + 1, length - 4]] = SEP  # three, as their default for questions needs
    return tokens


def padded(tokens, before=0):
    """Rows of other lengths, and which of their tokens are real."""
    length = tokens.shape[1]
    mask = torch.ones_like(tokens)
    mask[1, length - 3 :] = 0
    if before:
        mask[2, :before] = 0
    return tokens.masked_fill(mask == 0, PAD), mask


def some_global(tokens):
    mask = torch.zeros_like(tokens)
    mask[0, [0, 3, 4, tokens.shape[1] - 2]] = 1
    mask[1, 2] = 1
    return mask


@pytest.mark.parametrize("length", [5, 8, 21, 32, 70])
@pytest.mark.parametrize("with_global", [False, True])
@pytest.mark.parametrize("padding", ["none", "right", "both sides"])
def test_every_layer_is_theirs(both, length, with_global, padding):
    model, ours = both()
    tokens, masks = text(length), {}
    if padding != "none":
        tokens, masks["attention_mask"] = padded(tokens, before=2 if padding == "both sides" else 0)
    if with_global:
        masks["global_attention_mask"] = some_global(tokens)
    with torch.no_grad():
        right = model(tokens, output_hidden_states=True, **masks)
        found = ours(tokens, return_layers=True, **masks)
    assert len(found.layers) == 3
    for layer, wanted in zip(found.layers, right.hidden_states, strict=True):
        assert largest(layer, wanted) <= 1e-5
    assert torch.equal(found.features, found.layers[-1])
    if padding != "both sides":
        assert largest(found.pooled, right.pooler_output) <= 1e-5


@pytest.mark.parametrize("settings", [{"hidden_act": "gelu_new"}, {"hidden_act": "relu"}, {"attention_window": 6}])
def test_other_shapes_are_theirs(both, settings):
    model, ours = both(**settings)
    tokens = text()
    with torch.no_grad():
        assert largest(ours(tokens).features, model(tokens).last_hidden_state) <= 1e-5


def test_token_types_and_positions_are_theirs(both):
    model, ours = both(type_vocab_size=3)
    tokens, kinds, places = text(), torch.randint(3, (3, 21)), torch.randint(2, 60, (3, 21))
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
            return torch.tensor([[3, 5], [0, 12], [9, 99]])  # 99 is outside: no part of the mean


@pytest.mark.parametrize("head", ["masked_lm", "classification", "question_answering"])
@pytest.mark.parametrize("given", ["nothing", "masks"])
def test_heads_have_their_logits_loss_and_gradients(both, head, given):
    model, ours = both(head)
    tokens, masks = text(), {}
    if given == "masks":
        tokens, mask = padded(tokens)
        masks = {"attention_mask": mask, "global_attention_mask": some_global(tokens)}
    targets = targets_of(head, tokens)
    right = model(tokens, **masks, **as_theirs(head, targets))
    assert largest(ours(tokens, **masks).logits, logits_of(head, right)) <= 1e-5
    loss = ours(tokens, targets, **masks).loss
    assert loss.item() == pytest.approx(right.loss.item(), rel=1e-5)
    right.loss.backward()
    loss.backward()
    check_gradients(model, ours, head)


def check_gradients(model, ours, head):
    found = {FAMILY.stored_name(name, head): parameter.grad for name, parameter in ours.named_parameters()}
    wanted = {name.removeprefix(FAMILY.prefix): parameter.grad for name, parameter in model.named_parameters()}
    assert wanted.keys() == found.keys()
    greatest = max(gradient.abs().max() for gradient in wanted.values() if gradient is not None)
    for name, gradient in found.items():
        if wanted[name] is None:
            assert gradient is None, name
        else:  # keys' biases change no softmax, so their gradients are nothing but rounding
            size = gradient.abs().max().clamp(min=1e-3 * greatest)
            assert largest(gradient, wanted[name]) <= 1e-4 * size, name


@pytest.mark.parametrize("with_global", [False, True])
def test_gradients_of_every_parameter_are_theirs(both, with_global):
    model, ours = both()
    tokens, mask = padded(text())
    masks = {"attention_mask": mask, "global_attention_mask": some_global(tokens) * with_global}
    weights, pooled = torch.randn(3, 21, 32), torch.randn(3, 32)
    right, found = model(tokens, **masks), ours(tokens, **masks)
    ((right.last_hidden_state * weights).sum() + (right.pooler_output * pooled).sum()).backward()
    ((found.features * weights).sum() + (found.pooled * pooled).sum()).backward()
    check_gradients(model, ours, "pooler")
    assert (ours.blocks[0].attention.query_global.weight.grad is not None) == with_global


@pytest.mark.parametrize(
    ("count", "targets"),
    [(1, torch.tensor([0.5, -1.0, 2.0])), (3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]]))],
)
def test_numbers_and_several_labels_have_their_loss(both, count, targets):
    model, ours = both("classification", num_labels=count)
    tokens = text()
    assert ours(tokens, targets).loss.item() == pytest.approx(model(tokens, labels=targets).loss.item(), rel=1e-5)


def test_a_problem_that_the_file_names_is_kept(both):
    model, ours = both("classification", problem_type="regression")
    tokens, targets = text(), torch.randn(3, 3)
    assert ours(tokens, targets).loss.item() == pytest.approx(model(tokens, labels=targets).loss.item(), rel=1e-5)


# What transformers' Longformer does otherwise, and what is right.


def test_padding_in_front_moves_no_classification(both):
    """Theirs reads the logits off a padding token, and makes nothing global where the first token is padding."""
    model, ours = both("classification")
    tokens = text(21, 1)
    shifted = torch.cat([torch.full((1, 3), PAD), tokens], 1)
    mask = (shifted != PAD).long()
    with torch.no_grad():
        assert largest(ours(shifted, attention_mask=mask).logits, ours(tokens).logits) <= 1e-5
        assert largest(model(shifted, attention_mask=mask).logits, model(tokens).logits) > 0.01


@pytest.mark.parametrize("with_global", [False, True])
def test_padding_that_scores_high_is_not_seen(both, with_global):
    """Nor in theirs any more: its masks are the least number of the dtype now, and were -10,000."""
    model, ours = both()
    for name, parameter in [*model.named_parameters(), *ours.named_parameters()]:
        if "query" in name or "key" in name:
            parameter.data *= 300
    assert (ours.blocks[0].attention.query(ours.embeddings(text())).square().sum(-1) / 8**0.5 > 1e4).all()
    tokens, mask = padded(text())
    other = torch.where(mask > 0, tokens, 50)
    masks = {"attention_mask": mask}
    if with_global:
        masks["global_attention_mask"] = some_global(tokens)
    with torch.no_grad():
        for found in (lambda x: model(x, **masks).last_hidden_state, lambda x: ours(x, **masks).features):
            assert torch.equal(found(tokens)[mask > 0], found(other)[mask > 0])


def test_a_row_of_padding_alone_is_finite_and_so_are_its_gradients(both):
    model, ours = both()
    tokens, mask = text(), torch.ones(3, 21, dtype=torch.int64)
    mask[1] = 0
    chosen = some_global(tokens)
    output = ours(tokens, attention_mask=mask, global_attention_mask=chosen)
    output.features.square().sum().backward()
    assert output.features.isfinite().all()
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)
    with torch.no_grad():
        right = model(tokens, attention_mask=mask, global_attention_mask=chosen * mask).last_hidden_state
    assert largest(output.features[mask > 0], right[mask > 0]) <= 1e-5


def test_an_answer_outside_the_text_on_either_side_has_no_loss(both):
    """Theirs takes -100 for the first token."""
    model, ours = both("question_answering")
    tokens, none = text(), torch.full((3, 2), -100)
    assert ours(tokens, none).loss == 0
    assert model(tokens, **as_theirs("question_answering", none)).loss > 0


def test_no_target_at_all_has_no_loss(both):
    """Theirs divides by zero."""
    model, ours = both("masked_lm")
    tokens, none = text(), torch.full((3, 21), -100)
    assert ours(tokens, none).loss == 0
    assert model(tokens, labels=none).loss.isnan()


def test_a_question_may_be_followed_by_any_number_of_separators(both):
    """Theirs refuses all but three."""
    model, ours = both("question_answering")
    tokens = text()
    tokens[:, 6:] = 50
    question = torch.zeros_like(tokens)
    question[:, :5] = 1
    with torch.no_grad():
        right = model(tokens, global_attention_mask=question)
        assert largest(ours(tokens).logits, logits_of("question_answering", right)) <= 1e-5
    with pytest.raises(AssertionError, match="three separator tokens"):
        model(tokens)


def test_a_question_without_an_end_is_refused(both):
    _, ours = both("question_answering")
    with pytest.raises(ValueError, match="no sep_token_id=2 to end its question"):
        ours(torch.full((1, 9), 7))


def test_a_text_with_holes_is_refused(both):
    """Theirs computes it."""
    _, ours = both()
    mask = torch.ones(3, 21, dtype=torch.int64)
    mask[1, 7] = 0
    with pytest.raises(ValueError, match="attention_mask: row 1 is not one run of ones among zeros"):
        ours(text(), attention_mask=mask)
    with pytest.raises(ValueError, match="attention_mask: row 0 is not one run"):
        ours(text(), attention_mask=torch.full((3, 21), 2))


def test_global_tokens_in_padding_are_none(both):
    model, ours = both()
    tokens, mask = padded(text())
    everywhere = torch.ones_like(tokens)
    with torch.no_grad():
        right = model(tokens, attention_mask=mask, global_attention_mask=everywhere).last_hidden_state
        assert largest(ours(tokens, attention_mask=mask, global_attention_mask=everywhere).features, right) <= 1e-5


@pytest.mark.parametrize("dilation", [1, (1, 1, 2, 3)])
@pytest.mark.parametrize("with_global", [False, True])
def test_causal_is_causal(dilation, with_global):
    config = LongformerConfig(**THEIRS | {"causal": True, "attention_dilation": (1, dilation)})
    ours = Longformer(config, head="masked_lm").eval()
    tokens, other = text(40), text(40)
    other[:, :25] = tokens[:, :25]
    chosen, again = torch.zeros(2, 3, 40, dtype=torch.bool)
    if with_global:
        chosen[:, [2, 9, 30]] = again[:, [2, 9, 27]] = True
    with torch.no_grad():
        before = ours(tokens, global_attention_mask=chosen).logits
        after = ours(other, global_attention_mask=again).logits
    assert largest(before[:, :25], after[:, :25]) <= 1e-5
    assert largest(before[:, 25:], after[:, 25:]) > 0.1


def test_theirs_sees_the_future_whatever_its_configuration_says():
    model = theirs(autoregressive=True)
    tokens, other = text(40), text(40)
    other[:, :25] = tokens[:, :25]
    with torch.no_grad():
        before, after = (model(x).last_hidden_state for x in (tokens, other))
    assert largest(before[:, :25], after[:, :25]) > 0.1


# The model by itself.


def own(head=None, **settings):
    return Longformer(LongformerConfig(**THEIRS | labels(head) | {"hidden_dropout_prob": 0.0} | settings), head)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout):
    model = own("classification", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).double()
    tokens, targets = text(), torch.tensor([0, 1, 2])
    torch.manual_seed(5)
    kept = gradients(model, tokens, targets)
    model.checkpointing = True
    torch.manual_seed(5)
    again = gradients(model, tokens, targets)
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


def test_checkpointing_keeps_no_activation_of_a_block():
    model, kept = own("classification"), []
    model.checkpointing = True
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        model(text(), torch.tensor([0, 1, 2]))
    assert not any(shape and shape[-1] == 48 for shape in kept)


def test_a_few_steps_learn_a_text_by_heart():
    model, tokens = own("masked_lm", attention_probs_dropout_prob=0.0, initializer_range=0.02), text(24, 2)
    targets = torch.where(torch.arange(24) % 4 == 1, tokens, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(tokens.masked_fill(targets >= 0, 5), targets).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


def test_initialisation_is_theirs():
    model = own("masked_lm", hidden_size=128, initializer_range=0.02)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert not model.embeddings.tokens.weight[PAD].any() and not model.embeddings.positions.weight[PAD].any()


def test_it_compiles():
    model = own("classification", num_hidden_layers=1, attention_window=4, attention_probs_dropout_prob=0.0)
    compiled = torch.compile(model, backend="aot_eager")
    tokens, targets = text(), torch.tensor([0, 1, 2])
    wanted = gradients(model, tokens, targets)
    for name, gradient in gradients(compiled, tokens, targets).items():
        torch.testing.assert_close(gradient, wanted[name.removeprefix("_orig_mod.")])


@pytest.mark.parametrize(
    ("head", "inputs", "message"),
    [
        (None, (torch.zeros(5, dtype=torch.int64),), r"tokens are torch\.int64 \[5\]"),
        (None, (torch.zeros(1, 5),), r"tokens are torch\.float32"),
        (None, (torch.full((1, 73), 5),), r"73 tokens, but positions for 72 alone"),
        (None, (torch.full((1, 9), 5), torch.zeros(1)), "no head with a loss"),
        ("pooler", (torch.full((1, 9), 5), torch.zeros(1)), "no head with a loss"),
    ],
)
def test_wrong_inputs_are_refused_by_name(head, inputs, message):
    with pytest.raises(ValueError, match=message):
        own(head)(*inputs)


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"global_attention_mask is \[3, 20\]; give \[3, 21\]"):
        own()(text(), global_attention_mask=torch.zeros(3, 20))
    with pytest.raises(ValueError, match=r"attention_mask is \[3, 20\]; give \[3, 21\]"):
        own()(text(), attention_mask=torch.ones(3, 20))


def test_answers_have_two_ends():
    with pytest.raises(ValueError, match="num_labels is 3; give 2"):
        own("question_answering", num_labels=3)


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head is 'lm'; give pooler, masked_lm"):
        own("lm")


# Files.


@heads
def test_what_is_saved_is_read_here_and_by_transformers(head, tmp_path):
    model = own(head).eval()
    model.save_pretrained(tmp_path)
    again = Longformer.from_pretrained(tmp_path, head=head)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    model_of_theirs, report = CLASSES[head].from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens, masks = text(), {"global_attention_mask": some_global(text())}
    with torch.no_grad():
        found, right = model(tokens, **masks), model_of_theirs.eval()(tokens, **masks)
    if head == "pooler":
        assert largest(found.pooled, right.pooler_output) <= 1e-5
    else:
        assert largest(found.logits, logits_of(head, right)) <= 1e-5


def test_shards_are_read(tmp_path):
    model = theirs("masked_lm")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokens = text()
    with torch.no_grad():
        found = Longformer.from_pretrained(tmp_path, head="masked_lm").eval()(tokens).logits
        assert largest(found, model(tokens).logits) <= 1e-5
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(ValueError, match="leads out of its folder"):
        Longformer.from_pretrained(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    theirs().save_pretrained(tmp_path, max_shard_size="20KB")
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00001-of.*no such file"):
        Longformer.from_pretrained(tmp_path)


def test_a_new_head_begins_on_weights_that_have_none(tmp_path):
    theirs("masked_lm").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"classifier\.dense\.bias is missing.*new_head=True"):
        Longformer.from_pretrained(tmp_path, head="classification")
    model = Longformer.from_pretrained(tmp_path, head="classification", new_head=True)
    body = Longformer.from_pretrained(tmp_path)
    assert torch.equal(model.blocks[1].mlp.up.weight, body.blocks[1].mlp.up.weight)
    assert model.head.out.weight.any() and not model.head.out.bias.any()
    assert model(text(), torch.tensor([0, 1, 2])).loss.isfinite()


def change(folder, **tensors):
    stored = load_file(folder / "model.safetensors") | tensors
    save_file({name: x for name, x in stored.items() if x is not None}, folder / "model.safetensors")


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({QUERY: None}, f"{QUERY} is missing"),
        ({"colour": torch.zeros(3)}, "colour is no part of a longformer"),
        ({QUERY: torch.zeros(3, 32)}, rf"{QUERY} has shape \[3, 32\] where \[32, 32\] is expected"),
        ({QUERY: torch.zeros(32, 32, dtype=torch.int8)}, f"{QUERY} is I8"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path, tensors, message):
    theirs().save_pretrained(tmp_path)
    change(tmp_path, **tensors)
    with pytest.raises(ValueError, match=message):
        Longformer.from_pretrained(tmp_path)


def test_tensors_that_nobody_reads_are_left(tmp_path):
    theirs("masked_lm").save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    table = stored["longformer.embeddings.word_embeddings.weight"]
    change(
        tmp_path, **{"longformer.embeddings.position_ids": torch.arange(9)[None], "lm_head.decoder.weight": table + 0}
    )
    Longformer.from_pretrained(tmp_path, head="masked_lm")
    change(tmp_path, **{"lm_head.decoder.weight": table + 1})
    with pytest.raises(ValueError, match=r"lm_head\.decoder\.weight differs from embeddings\.word_embeddings\.weight"):
        Longformer.from_pretrained(tmp_path, head="masked_lm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'; give one of gelu"),
        ({"attention_window": [4]}, r"attention_window is \[4\]; give one for each of num_hidden_layers=2"),
        ({"attention_window": 5}, "attention_window is 5; give positive even numbers"),
        ({"num_attention_heads": 5}, "hidden_size is 32; give a multiple of num_attention_heads=5"),
    ],
)
def test_other_configurations_are_refused_by_name(tmp_path, changes, message):
    theirs().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        Longformer.from_pretrained(tmp_path)


def test_what_is_no_folder_of_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        Longformer.from_pretrained(tmp_path)
    transformers.LongformerConfig(**THEIRS).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        Longformer.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match="a pickle that is never opened"):
        Longformer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        Longformer.from_pretrained(tmp_path)


@pytest.mark.gpu
@heads
def test_a_gpu_computes_what_the_cpu_does(head):
    model = own(head, attention_probs_dropout_prob=0.0)
    tokens, mask = padded(text())
    masks = {"attention_mask": mask, "global_attention_mask": some_global(tokens)}

    def run(place):
        output = model.to(place)(tokens.to(place), **{name: each.to(place) for name, each in masks.items()})
        result = output.pooled if head == "pooler" else output.logits
        model.zero_grad()
        result.square().sum().backward()
        return [result.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]

    on_gpu, on_cpu = run("cuda"), run("cpu")
    scale = max(x.abs().max().item() for x in on_cpu)
    for found, right in zip(on_gpu, on_cpu, strict=True):  # biases of keys have no gradient but others' rounding
        assert largest(found, right) <= 1e-3 * right.abs().max() + max(1e-5, 1e-8 * scale)
