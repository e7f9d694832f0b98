"""Evaluation with a stride: each token scored once, with a long past."""

import math

import pytest
import torch

from gossamer.config import GPT2Config
from gossamer.models.gpt2 import GPT2
from gossamer.training.strided_loss import strided_loss

LENGTH = 12


@pytest.fixture
def model() -> GPT2:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, context_size=16, n_layer=1, n_head=2, n_embed=16, dropout=0.5)
    return GPT2(config).double()


@pytest.mark.parametrize("stride", [1, 5, 12])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_is_the_mean_over_the_last_tokens_of_each_sequence(model: GPT2, stride: int, batch_size: int) -> None:
    text = torch.randint(11, (60,))
    found = strided_loss(model, text, length=LENGTH, stride=stride, batch_size=batch_size)
    assert model.training  # as it was
    model.eval()
    log_p, scored = 0.0, []
    for first in range(0, 60 - LENGTH, stride):
        logits = model(text[None, first : first + LENGTH]).logits[0].log_softmax(-1)
        for place in range(LENGTH - stride, LENGTH):
            log_p += logits[place, text[first + place + 1]].item()
            scored.append(first + place + 1)
    assert len(set(scored)) == len(scored)
    assert found == pytest.approx(-log_p / len(scored), rel=1e-9)


def test_a_model_that_knows_nothing_costs_the_logarithm_of_its_vocabulary(model: GPT2) -> None:
    with torch.no_grad():
        model.wte.weight.zero_()
    assert strided_loss(model, torch.zeros(30, dtype=torch.int64), length=8, stride=4) == pytest.approx(math.log(11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 13}, r"stride is 13; give at most length=12"),
        ({"stride": 0}, r"stride is 0; .* at least 1"),
        ({"length": 30}, r"30 tokens hold no sequence of length=30"),
        ({"batch_size": 0}, r"batch_size is 0; .* at least 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(model: GPT2, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"strided_loss: {message}"):
        strided_loss(model, torch.zeros(30, dtype=torch.int64), **{"length": LENGTH, "stride": 4, **change})
