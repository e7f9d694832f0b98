"""Targets: each head's are refused by name before anything is computed, or are what its loss is of."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from gossamer.config import BigBirdConfig, LongformerConfig
from gossamer.models.bigbird import BigBird
from gossamer.models.encoder import Encoder
from gossamer.models.heads import Encoded
from gossamer.models.longformer import Longformer

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "sep_token_id": 2,
    "hidden_dropout_prob": 0.0,
}
BATCH, LENGTH = 3, 9
KINDS = {"longformer": (Longformer, LongformerConfig), "bigbird": (BigBird, BigBirdConfig)}
CASES = {"masked_lm": {}, "classification": {"num_labels": 4}, "question_answering": {"num_labels": 2}}
CASES |= {
    "regression": {"num_labels": 1},
    "three numbers": {"num_labels": 3, "problem_type": "regression"},
    "many labels": {"num_labels": 4, "problem_type": "multi_label_classification"},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, case: str) -> Encoder:
    torch.manual_seed(0)
    model, config = KINDS[kind]
    settings = SHAPE | CASES[case] | ({"attention_window": 4} if kind == "longformer" else {"block_size": 4})
    head = case if case in ("masked_lm", "question_answering") else "classification"
    return model(config(**settings), head).eval()


def text() -> torch.Tensor:
    tokens = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) + 3
    tokens[:, 3] = 2
    return tokens


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def changed(targets: torch.Tensor, value: float) -> torch.Tensor:
    targets.view(-1)[1] = value
    return targets


nan = float("nan")
WRONG = {
    "tokens too few": ("masked_lm", ints(3, 8), r"targets are torch\.int64 \[3, 8\]; give int64 \[3, 9\]"),
    "tokens flat": ("masked_lm", ints(27), r"targets are torch\.int64 \[27\]; give int64 \[3, 9\]"),
    "tokens int32": ("masked_lm", ints(3, 9).int(), r"targets are torch\.int32 \[3, 9\]; give int64 \[3, 9\]"),
    "tokens -1": ("masked_lm", changed(ints(3, 9), -1), "targets hold -1; give 0 to 49, or -100 to leave one out"),
    "tokens 50": ("masked_lm", changed(ints(3, 9), 50), "targets hold 50; give 0 to 49, or -100 to leave one out"),
    "classes too few": ("classification", ints(2), r"targets are torch\.int64 \[2\]; give int64 \[3\] .*problem_type"),
    "classes in a row": ("classification", ints(3, 4), r"targets are torch\.int64 \[3, 4\]; give int64 \[3\]"),
    "classes int32": ("classification", ints(3).int(), r"targets are torch\.int32 \[3\]; give int64 \[3\]"),
    "classes -1": ("classification", changed(ints(3), -1), "targets hold -1; give 0 to 3, or -100 to leave one out"),
    "classes 4": ("classification", changed(ints(3), 4), "targets hold 4; give 0 to 3, or -100 to leave one out"),
    "labels too few": ("classification", torch.zeros(3), r"targets are torch\.float32 \[3\]; give numbers \[3, 4\]"),
    "labels turned": ("classification", torch.zeros(4, 3), r"torch\.float32 \[4, 3\]; give numbers \[3, 4\]"),
    "labels 2": ("classification", changed(torch.zeros(3, 4), 2), r"targets hold 2\.0; give 0\.0 to 1\.0"),
    "labels -100": ("many labels", changed(ints(3, 4), -100), r"targets hold -100; give 0\.0 to 1\.0"),
    "labels nan": ("many labels", changed(torch.zeros(3, 4), nan), r"targets hold nan; give 0\.0 to 1\.0"),
    "numbers too many": ("regression", torch.zeros(4), r"targets are torch\.float32 \[4\]; give numbers \[3\]"),
    "numbers turned": ("regression", torch.zeros(1, 3), r"torch\.float32 \[1, 3\]; give numbers \[3\]"),
    "numbers complex": ("regression", torch.zeros(3) * 1j, r"torch\.complex64 \[3\]; give numbers \[3\]"),
    "numbers nan": ("regression", changed(torch.zeros(3), nan), "targets hold nan; give finite numbers"),
    "three numbers turned": ("three numbers", torch.zeros(9), r"torch\.float32 \[9\]; give numbers \[3, 3\]"),
    "ends alone": ("question_answering", ints(3), r"targets are torch\.int64 \[3\]; give int64 \[3, 2\]"),
    "ends turned": ("question_answering", ints(2, 3), r"targets are torch\.int64 \[2, 3\]; give int64 \[3, 2\]"),
    "ends float": ("question_answering", torch.zeros(3, 2), r"torch\.float32 \[3, 2\]; give int64 \[3, 2\]"),
    "ends -1": ("question_answering", changed(ints(3, 2), -1), "targets hold -1; give 0 or more, or -100 to leave"),
}


@kinds
@pytest.mark.parametrize(("case", "targets", "message"), WRONG.values(), ids=WRONG)
def test_wrong_targets_are_refused_before_anything_is_computed(kind, case, targets, message):
    model = made(kind, case)
    model.embeddings.register_forward_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        model(text(), targets)


def test_minus_one_that_nobody_checked_is_not_left_out_silently():
    model = made("longformer", "masked_lm")
    encoded = Encoded(torch.randn(BATCH, LENGTH, 16), text(), None, model.embeddings.tokens.weight)
    with pytest.raises(IndexError, match="Target -1 is out of bounds"):
        model.head.loss(encoded, changed(text(), -1))


LEFT_OUT = {
    "masked_lm": (
        torch.where(text() % 3 == 0, text(), -100),
        lambda y, t: F.cross_entropy(y.flatten(0, 1), t.view(-1)),
    ),
    "classification": (torch.tensor([3, -100, 0]), F.cross_entropy),
    "regression": (torch.tensor([-100.0, 0.5, 2.0]), lambda y, t: F.mse_loss(y[:, 0], t)),
    "three numbers": (torch.ones(3, 3), F.mse_loss),
    "many labels": (torch.eye(3, 4), lambda y, t: F.binary_cross_entropy_with_logits(y, t)),
    "question_answering": (
        torch.tensor([[4, 5], [-100, 99], [6, -100]]),  # 99 is outside
        lambda y, t: (F.cross_entropy(y[[0, 2], :, 0], t[[0, 2], 0]) + F.cross_entropy(y[[0], :, 1], t[[0], 1])) / 2,
    ),
}


@kinds
@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_left_out_has_no_part_in_the_loss(kind, case):
    model, (targets, loss) = made(kind, case), LEFT_OUT[case]
    found = model(text(), targets).loss
    assert found.item() == pytest.approx(loss(model(text()).logits, targets).item(), rel=1e-5)
    assert found > 0


def test_numbers_may_be_a_column_and_whole():
    model, targets = made("longformer", "regression"), torch.tensor([3, -1, 2])
    assert model(text(), targets[:, None]).loss == model(text(), targets).loss == model(text(), targets.float()).loss


def test_fake_targets_have_no_values_to_read():
    with FakeTensorMode():
        assert made("bigbird", "classification")(text(), torch.zeros(BATCH, dtype=torch.int64)).loss.shape == ()
