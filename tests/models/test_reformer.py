"""`Reformer` is Hugging Face's, with its buckets handed over: features, logits, losses and gradients."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from gossamer.config import ReformerConfig
from gossamer.models.reformer import FAMILY, Reformer, ReformerAttention

CHUNK, LENGTH = 8, 48
SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "attention_head_size": 6,
    "feed_forward_size": 40,
    "axial_pos_shape": (6, 8),
    "axial_pos_embds_dim": (8, 16),
    "axial_norm_std": 0.3,
    "initializer_range": 0.3,
    "max_position_embeddings": 48,
    "local_attn_chunk_length": CHUNK,
    "lsh_attn_chunk_length": CHUNK,
    "num_buckets": 8,
    "hidden_dropout_prob": 0.0,
    "local_attention_probs_dropout_prob": 0.0,
}
KINDS = {
    "local": {"attn_layers": ("local",) * 3, "is_decoder": True},
    "local, both ways": {"attn_layers": ("local",) * 3, "local_num_chunks_after": 1},
    "lsh": {"attn_layers": ("lsh",) * 2, "is_decoder": True, "num_hashes": 2},
    "lsh, both ways": {"attn_layers": ("lsh",) * 2, "num_hashes": 3},
    "lsh, once": {"attn_layers": ("lsh",) * 2, "is_decoder": True},
    "mixed": {
        "attn_layers": ("local", "lsh", "local", "lsh"),
        "is_decoder": True,
        "num_hashes": 2,
        "num_buckets": [4, 2],
        "lsh_attn_chunk_length": 4,
        "chunk_size_feed_forward": 8,
    },
    "mixed, both ways": {"attn_layers": ("lsh", "local"), "num_hashes": 2, "lsh_attn_chunk_length": 12},
    "learned positions": {"attn_layers": ("local", "lsh"), "is_decoder": True, "axial_pos_embds": False},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Theirs:
    """A Reformer of transformers in float64, and what its LSH layers hashed to in the first run since `forget`.

    In float32 their rounds are not joined to better than 0.4 %, where a token is alone in each: its log-sum-exp is
    -100000 there, whose neighbours are 0.008 apart.
    """

    def __init__(self, name: str, folder: Path, kind: str, **settings: object):
        torch.manual_seed(0)
        config = transformers.ReformerConfig(**{**SMALL, **KINDS[kind], **settings, "pad_token_id": 0})
        self.config, self.model = config, getattr(transformers, name)(config)
        self.model.save_pretrained(folder)
        self.model = self.model.double().eval()
        self.forget()
        for module in self.model.modules():
            if isinstance(module, LSHSelfAttention):
                module.register_forward_hook(self._hashed)

    def forget(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def _hashed(self, module: LSHSelfAttention, _: object, output: tuple) -> None:
        if output.buckets is not None:
            self.seen.setdefault(module.layer_idx, output.buckets)

    def buckets(self, padded: bool = False) -> list[Tensor | None] | None:
        """As ours has them: counted from 0 in each round. With padding, theirs have one more a round."""
        if not self.seen:
            return None
        given = self.config.num_buckets
        count = (given if isinstance(given, int) else math.prod(given)) + padded
        return [
            None if (own := self.seen.get(layer)) is None else own - count * torch.arange(own.shape[2])[:, None]
            for layer in range(self.config.num_hidden_layers)
        ]


def tokens(length: int = LENGTH, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(1, 60, (batch, length), generator=torch.Generator().manual_seed(seed))


def mask_of(runs: list[tuple[int, int]], length: int) -> Tensor:
    position = torch.arange(length)
    return torch.stack([(position >= first) & (position < last) for first, last in runs]).long()


@every_kind
@pytest.mark.parametrize("length", [LENGTH, 24, 29, 17, 8, 5])
def test_features_are_hugging_face_s(kind: str, length: int, tmp_path: Path) -> None:
    theirs = Theirs("ReformerModel", tmp_path, kind)
    ours = Reformer.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = theirs.model(tokens(length)).last_hidden_state
        padded = ours.config.padded(length) > length
        found = ours(tokens(length), buckets=theirs.buckets(padded))
    torch.testing.assert_close(found.features.double(), wanted, rtol=0, atol=1e-5)
    assert found.logits is None and found.loss is None


@every_kind
@pytest.mark.parametrize("runs", [[(0, 30), (0, 48)], [(7, 48), (20, 41)]], ids=["right", "both sides"])
def test_padding_is_hugging_face_s_mask(kind: str, runs: list[tuple[int, int]], tmp_path: Path) -> None:
    theirs = Theirs("ReformerModel", tmp_path, kind)
    ours = Reformer.from_pretrained(tmp_path).eval()
    mask = mask_of(runs, LENGTH)
    with torch.no_grad():
        wanted = theirs.model(tokens(), attention_mask=mask).last_hidden_state
        found = ours(tokens(), attention_mask=mask, buckets=theirs.buckets(padded=True)).features
    torch.testing.assert_close(found[mask == 1].double(), wanted[mask == 1], rtol=0, atol=1e-5)


HEADS = {
    "lm": ("ReformerModelWithLMHead", "mixed"),
    "masked_lm": ("ReformerForMaskedLM", "mixed, both ways"),
    "classification": ("ReformerForSequenceClassification", "lsh, both ways"),
}


def targets_of(head: str) -> tuple[Tensor, Tensor]:
    """(ours, theirs) of the same meaning: transformers moves a language model's labels itself."""
    if head == "classification":
        return (classes := torch.tensor([1, 0])), classes
    labels = tokens(seed=2)
    labels[0, 5:20] = -100
    if head == "masked_lm":
        return labels, labels
    return torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1), labels


@pytest.mark.parametrize("head", HEADS)
def test_heads_give_hugging_face_s_logits_and_losses(head: str, tmp_path: Path) -> None:
    name, kind = HEADS[head]
    theirs = Theirs(name, tmp_path, kind)
    ours = Reformer.from_pretrained(tmp_path, head=head).eval()
    ours_targets, labels = targets_of(head)
    with torch.no_grad():
        wanted = theirs.model(tokens(), labels=labels)
        found = ours(tokens(), buckets=theirs.buckets())
        loss = ours(tokens(), ours_targets, buckets=theirs.buckets()).loss
    torch.testing.assert_close(found.logits.double(), wanted.logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(loss.double(), wanted.loss.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("stored", [False, True], ids=["reversible", "stored"])
@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_those_of_hugging_face_s_reversible_backward(head: str, stored: bool, tmp_path: Path) -> None:
    name, kind = HEADS[head]
    tolerance = 1e-7 if head == "lm" else 1e-9  # their loss of a language model is of float32 logits
    theirs = Theirs(name, tmp_path, kind)
    ours = Reformer.from_pretrained(tmp_path, head=head).double()
    ours.blocks.stored = stored
    ours_targets, labels = targets_of(head)
    theirs.model.train()(tokens(), labels=labels).loss.backward()
    ours(tokens(), ours_targets, buckets=theirs.buckets()).loss.backward()
    wanted = {key.removeprefix("reformer."): x.grad for key, x in theirs.model.named_parameters() if x.grad is not None}
    found = {FAMILY.stored_name(key, head): x.grad for key, x in ours.named_parameters()}
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=0, atol=tolerance * (1 + wanted[key].abs().max().item()))


def model(kind: str = "mixed", head: str | None = "lm", **settings: object) -> Reformer:
    torch.manual_seed(0)
    return Reformer(ReformerConfig(**{**SMALL, **KINDS[kind], **settings}), head=head)


def gradients(reformer: Reformer, *, stored: bool) -> list[Tensor]:
    reformer.blocks.stored = stored
    reformer.zero_grad()
    torch.manual_seed(2)
    loss = reformer(tokens(), tokens(seed=2)).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in reformer.parameters())]


def check_equals_stored(reformer: Reformer, tolerance: float) -> None:
    """The reversible backward gives the loss and gradients of stored activations, relative to each one's size."""
    for found, wanted in zip(gradients(reformer, stored=False), gradients(reformer, stored=True), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * (1 + wanted.abs().max().item()))


def drawn(batch: int = 2, length: int = LENGTH) -> list[Tensor | None]:
    """Buckets for the layers of "mixed"."""
    return [None, torch.zeros(batch, 3, 2, length, dtype=torch.int64)] * 2


DROPPING = {"hidden_dropout_prob": 0.2, "local_attention_probs_dropout_prob": 0.2}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("rules", ["trax", "paper", "lucidrains"])
def test_reversible_is_stored_with_dropout_on(dtype: torch.dtype, tolerance: float, rules: str) -> None:
    check_equals_stored(model(lsh_rules=rules, **DROPPING).to(dtype), tolerance)


def test_autocast_loses_no_more_by_reversing_many_layers() -> None:
    """What comes back of an input differs by rounding, but gradients stay as near to float32's as stored ones."""
    reformer = model(attn_layers=("local", "lsh") * 12, initializer_range=0.05)
    buckets, found = reformer(tokens()).buckets, {}
    for name, stored, half in (("float32", True, False), ("stored", True, True), ("reversible", False, True)):
        reformer.blocks.stored = stored
        reformer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            reformer(tokens(), tokens(seed=2), buckets=buckets).loss.backward()
        found[name] = torch.cat([parameter.grad.flatten() for parameter in reformer.parameters()])
    far = {name: (gradient - found["float32"]).norm() for name, gradient in found.items()}
    assert 0 < far["reversible"] < 1.1 * far["stored"]


def gradients_of(reformer: Reformer, length: int, buckets: list[Tensor | None], *, filled: bool) -> dict[str, Tensor]:
    """Of the first `length` tokens, which the model is to fill up itself, or which are `filled` and masked."""
    text, targets = tokens(), tokens(seed=2)
    targets[:, length:] = -100
    mask = mask_of([(0, length)] * 2, LENGTH)
    if not filled:
        text, targets, mask = text[:, :length], targets[:, :length], None
    reformer.zero_grad()
    reformer(text, targets, attention_mask=mask, buckets=buckets).loss.backward()
    return {name: parameter.grad.float() for name, parameter in reformer.named_parameters()}


@pytest.mark.parametrize("stored", [False, True], ids=["reversible", "stored"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [45, 41])
def test_half_precision_errs_no_more_where_the_model_fills_up(length: int, dtype: torch.dtype, stored: bool) -> None:
    """Gradients are as near to float32's as those of a batch that was filled up before."""
    reformer = model(initializer_range=0.1, lsh_attn_chunk_length=CHUNK)
    reformer.blocks.stored = stored
    buckets = reformer(tokens()).buckets
    right = gradients_of(reformer, length, buckets, filled=True)
    torch.testing.assert_close(gradients_of(reformer, length, buckets, filled=False), right, rtol=0, atol=1e-5)
    reformer.to(dtype)
    found, usual = (gradients_of(reformer, length, buckets, filled=filled) for filled in (False, True))
    for name, gradient in right.items():
        error, allowed = ((grads[name] - gradient).norm() for grads in (found, usual))
        assert error <= 1.1 * allowed, f"{name}: {error:.2e}, {allowed:.2e} where filled up before"
    one, other = (torch.cat([x.flatten() for x in grads.values()]) for grads in (found, right))
    assert (one - other).norm() < 0.05 * other.norm()


def test_buckets_drawn_anew_in_the_backward_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = ReformerAttention.forward

    def forgetful(self, x, *, within=None, buckets=None):
        return hashed(
            self, x, within=within, buckets=self.draw(x) if torch.is_grad_enabled() and buckets is not None else buckets
        )

    monkeypatch.setattr(ReformerAttention, "forward", forgetful)
    with pytest.raises(AssertionError):
        check_equals_stored(model().double(), 1e-6)


def test_dropout_that_differs_in_the_backward_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.nn.reversible._Generators._set", lambda self: None)
    with pytest.raises(AssertionError):
        check_equals_stored(model(**DROPPING).double(), 1e-6)


@every_kind
def test_a_causal_model_sees_nothing_ahead(kind: str) -> None:
    """With the buckets of one run, later tokens change nothing before them; one that looks ahead does change."""
    reformer = model(kind, head=None).double().eval()
    changed = tokens()
    changed[:, 30:] = tokens(seed=3)[:, 30:]
    with torch.no_grad():
        first = reformer(tokens())
        second = reformer(changed, buckets=first.buckets)
    before = (first.features[:, :30] - second.features[:, :30]).abs().max()
    assert (before < 1e-12) == reformer.config.is_decoder
    assert not torch.allclose(first.features[:, 30:], second.features[:, 30:])


def test_each_forward_hashes_anew_and_repeats_with_its_buckets() -> None:
    reformer = model("lsh", head=None).eval()
    with torch.no_grad():
        first, second = reformer(tokens()), reformer(tokens())
        again = reformer(tokens(), buckets=first.buckets)
    assert not torch.equal(first.features, second.features)
    assert torch.equal(first.features, again.features)


def test_padding_changes_no_local_layer() -> None:
    reformer = model("local", head=None).double().eval()
    mask = mask_of([(0, 21)], 48)
    alone, padded = reformer(tokens(batch=1)[:, :21]), reformer(tokens(batch=1), attention_mask=mask)
    torch.testing.assert_close(padded.features[:, :21], alone.features)


@pytest.mark.parametrize("head", [None, *HEADS])
def test_what_is_saved_is_read_by_both(head: str | None, tmp_path: Path) -> None:
    name, kind = HEADS.get(head, ("ReformerModel", "mixed"))
    ours = model(kind, head, chunk_size_feed_forward=2).eval()
    ours.save_pretrained(tmp_path)
    again = Reformer.from_pretrained(tmp_path, head=head)
    assert again.config == ours.config
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(transformers, name).from_pretrained(tmp_path).double().eval()
    short = tokens(4)  # one chunk: nothing is hashed
    with torch.no_grad():
        wanted = theirs(short)
        found = ours(short)
    if head is None:
        torch.testing.assert_close(found.features.double(), wanted.last_hidden_state, rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(found.logits.double(), wanted.logits, rtol=0, atol=2e-5)


def test_an_old_file_with_its_bias_once_and_its_masks_is_read(tmp_path: Path) -> None:
    ours = model()
    ours.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.bias"] = tensors.pop("lm_head.decoder.bias") + 1
    tensors["reformer.encoder.layers.1.attention.self_attention.self_mask_value_float16"] = torch.tensor(-1000.0)
    save_file(tensors, file)
    assert torch.equal(Reformer.from_pretrained(tmp_path, head="lm").head.decoder.bias, ours.head.decoder.bias + 1)


def test_a_head_that_the_file_lacks_is_begun_anew_when_asked(tmp_path: Path) -> None:
    ours = model("lsh, both ways", head=None)
    ours.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"classifier\..* is missing.*new_head=True"):
        Reformer.from_pretrained(tmp_path, head="classification")
    begun = Reformer.from_pretrained(tmp_path, head="classification", new_head=True, num_hashes=5)
    assert torch.equal(begun.norm.weight, ours.norm.weight) and begun.config.num_hashes == 5
    assert begun(tokens(), torch.tensor([0, 1])).loss.isfinite()


def test_a_file_that_asks_for_what_is_not_computed_is_refused(tmp_path: Path) -> None:
    Theirs("ReformerModel", tmp_path, "lsh", hash_seed=3)
    with pytest.raises(ValueError, match="hash_seed is 3; ReformerConfig describes None only"):
        Reformer.from_pretrained(tmp_path)


def test_initial_weights_are_the_configuration_s() -> None:
    reformer = model(hidden_size=240, axial_pos_embds_dim=(80, 160))
    for name, parameter in reformer.named_parameters():
        if "norm" in name or name.endswith(".bias"):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        else:
            assert parameter.std().item() == pytest.approx(0.3, rel=0.1), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model()(tokens().int()), r"tokens are torch.int32 \[2, 48\]; give int64"),
        (lambda: model()(tokens(49)), "49 tokens, but positions for 48 alone"),
        (lambda: model(head=None)(tokens(), tokens()), "targets are given, but there is no head"),
        (lambda: model(head="masked_lm"), "head is 'masked_lm', but is_decoder is True; give 'lm'"),
        (lambda: model("lsh, both ways"), "head is 'lm', but is_decoder is False; give 'masked_lm'"),
        (
            lambda: model(lsh_attention_probs_dropout_prob=0.1)(tokens()),
            "lsh_attention_probs_dropout_prob is 0.1, but hashed attention drops no weights; set it to 0.0",
        ),
        (lambda: model(head="qa"), "head is 'qa'; give lm, masked_lm, classification or None"),
        (
            lambda: model()(tokens(), buckets=drawn(batch=1)),
            r"buckets of layer 1 are torch.int64 \[1, 3, 2, 48\]; give",
        ),
        (
            lambda: model()(tokens(35), buckets=drawn(length=35)),
            r"buckets .*\[2, 3, 2, 35\]; give int64 \[2, 3, rounds, 40\]",
        ),
        (
            lambda: model()(tokens(4), buckets=drawn(length=5)),
            r"buckets .*\[2, 3, 2, 5\]; give int64 \[2, 3, rounds, 4\]",
        ),
        (
            lambda: model()(tokens(), buckets=[None, torch.zeros(2, 3, 2, 48)] * 2),
            "buckets of layer 1 are torch.float32",
        ),
        (lambda: model()(tokens(), buckets=[drawn()[1], None] * 2), "buckets of layer 0 .*; nothing is hashed there"),
    ],
)
def test_bad_calls_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"Reformer: {message}"):
        call()


@pytest.mark.parametrize("shape", [(2, 10), (2, 19), (2, 25), (1, 20), (20,)], ids=str)
def test_a_mask_that_is_not_as_long_as_the_tokens_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attention_mask is \[.*\]; give \[2, 20\], as the tokens"):
        model()(tokens(20), attention_mask=torch.ones(shape, dtype=torch.int64))


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("head", [None, "lm"])
@pytest.mark.parametrize("shape", [(2, 0), (0, 9)], ids=str)
def test_no_tokens_have_no_features(shape: tuple[int, int], head: str | None, masked: bool) -> None:
    nothing = torch.zeros(shape, dtype=torch.int64)
    reformer, mask = model(head=head), nothing + 1 if masked else None
    output = reformer(nothing, attention_mask=mask)
    assert output.features.shape == (*shape, 48)
    if head is not None:
        loss = reformer(nothing, nothing, attention_mask=mask).loss
        loss.backward()
        assert loss == 0


@pytest.mark.parametrize("batch", [0, 2])
def test_no_token_has_no_class(batch: int) -> None:
    reformer, tokens = model("lsh, both ways", "classification"), torch.zeros(batch, 0, dtype=torch.int64)
    said = f"Reformer: tokens are {re.escape(str([batch, 0]))}; give at least one: classification reads a text's first"
    for attention_mask in (None, tokens):
        with pytest.raises(ValueError, match=said):
            reformer(tokens, attention_mask=attention_mask)


@pytest.mark.parametrize(("kind", "head"), [("mixed", "lm"), ("lsh, both ways", "masked_lm")])
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (tokens(47), r"torch.int64 \[2, 47\]; give int64 \[2, 48\]"),
        (tokens(batch=1), r"torch.int64 \[1, 48\]; give int64 \[2, 48\]"),
        (tokens().flatten(), r"torch.int64 \[96\]; give int64 \[2, 48\]"),
        (tokens().int(), r"torch.int32 \[2, 48\]; give int64 \[2, 48\]"),
        (tokens().float(), r"torch.float32 \[2, 48\]; give int64 \[2, 48\]"),
    ],
    ids=["short", "few", "flat", "int32", "float32"],
)
def test_targets_that_do_not_fit_are_refused(kind: str, head: str, targets: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"targets are {said}"):
        model(kind, head)(tokens(), targets)


@pytest.mark.parametrize("wrong", [-1, 60, -101])
@pytest.mark.parametrize(("kind", "head"), [("mixed", "lm"), ("lsh, both ways", "masked_lm")])
def test_targets_that_are_no_tokens_are_refused(kind: str, head: str, wrong: int) -> None:
    """All but -100, which alone is left out: -1 is not passed over in silence."""
    targets = tokens(seed=2)
    targets[1, 7] = wrong
    with pytest.raises(ValueError, match=f"targets hold {wrong}; give 0 to 59, or -100 to leave one out"):
        model(kind, head)(tokens(), targets)
