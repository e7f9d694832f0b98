"""What every encoder shares, with an attention that does nothing."""

import pytest
import torch
from torch import nn

from gossamer.config import EncoderConfig
from gossamer.models.encoder import Embeddings, Encoder, runs_of
from gossamer.models.heads import ClassificationHead, Encoded, MaskedLMHead, Pooler, QuestionAnsweringHead

CONFIG = EncoderConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
    hidden_dropout_prob=0.25,
)


class Silent(nn.Module):
    """Adds nothing, and remembers what it was called with."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, None

    def forward(self, x, **seen):
        self.seen = seen
        return torch.zeros_like(x)


def encoder(head=None):
    return Encoder(CONFIG, Embeddings(CONFIG), Silent, head)


def text(length=9):
    return torch.randint(1, 50, (2, length))


def test_each_layer_has_the_attention_built_for_it_and_is_handed_what_is_seen():
    model = encoder()
    model.run(text(), None, {"within": None, "colour": 3})
    assert [block.attention.layer for block in model.blocks] == [0, 1, 2]
    assert all(block.attention.seen == {"within": None, "colour": 3} for block in model.blocks)


def test_layers_are_given_where_asked_for():
    output = encoder().eval().run(text(), None, {}, return_layers=True)
    assert len(output.layers) == 4 and output.layers[-1] is output.features
    assert encoder().run(text(), None, {}).layers is None


def test_dropout_acts_in_training_only():
    model, tokens = encoder(), text()
    assert not torch.equal(model.run(tokens, None, {}).features, model.run(tokens, None, {}).features)
    model.eval()
    assert torch.equal(model.run(tokens, None, {}).features, model.run(tokens, None, {}).features)


@pytest.mark.parametrize("head", [Pooler(CONFIG), ClassificationHead(CONFIG, "gelu", 0.1)], ids=["pooler", "classes"])
def test_the_first_token_is_the_first_of_the_text(head):
    model = encoder(head).eval()
    within = torch.tensor([[0, 9], [4, 9]], dtype=torch.int32)
    output = model.run(text(), None, {"within": within})
    found = output.pooled if isinstance(head, Pooler) else output.logits
    alone = [head.eval()(encoded_from(output.features[row : row + 1, first:])) for row, first in ((0, 0), (1, 4))]
    torch.testing.assert_close(found, torch.cat(alone))


def encoded_from(features):
    return Encoded(features, torch.zeros(features.shape[:2], dtype=torch.int64), None, torch.zeros(50, 16))


NEEDY = {
    "pooler": Pooler(CONFIG),
    "classes": ClassificationHead(CONFIG, "gelu", 0.1),
    "answers": QuestionAnsweringHead(CONFIG),
}


@pytest.mark.parametrize("head", NEEDY.values(), ids=NEEDY)
def test_heads_that_read_a_token_refuse_texts_of_none(head):
    message = r"Encoder: tokens are \[2, 0\], of which \w+ has nothing to read; give at least one token"
    with pytest.raises(ValueError, match=message):
        encoder(head).run(text(0), None, {})


@pytest.mark.parametrize("head", [None, MaskedLMHead(CONFIG, "gelu")], ids=["none", "masked"])
def test_without_one_texts_of_no_token_have_no_features(head):
    within = runs_of(torch.ones(2, 0))
    assert within.dtype == torch.int32 and within.tolist() == [[0, 0], [0, 0]]
    output = encoder(head).run(text(0), None, {"within": within})
    assert output.features.shape == (2, 0, 16)
    assert head is None or output.logits.shape == (2, 0, 50)
    assert head is None or encoder(head).run(text(0), text(0), {}).loss == 0


def test_the_masked_loss_is_that_of_the_logits():
    model, tokens = encoder(MaskedLMHead(CONFIG, "gelu")).double().eval(), text()
    nn.init.normal_(model.head.bias)
    targets = torch.where(torch.rand(2, 9) < 0.5, tokens, -100)
    logits = model.run(tokens, None, {}).logits
    whole = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss = model.run(tokens, targets, {}).loss
    torch.testing.assert_close(loss, whole)
    for (name, parameter), found in zip(
        model.named_parameters(), torch.autograd.grad(loss, model.parameters()), strict=True
    ):
        wanted = torch.autograd.grad(whole, parameter, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted, msg=name)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_runs_are_where_the_ones_are(dtype):
    rows = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    within = runs_of(torch.tensor(rows).to(dtype))
    assert within.dtype == torch.int32
    assert within.tolist() == [[0, 4], [0, 1], [2, 4], [1, 3], [0, 0]]


@pytest.mark.parametrize("row", [[1, 0, 1, 0], [0, 1, 0, 1], [2, 1, 1, 1], [0, -1, 0, 0]])
def test_what_is_no_run_of_ones_is_refused(row):
    with pytest.raises(ValueError, match="attention_mask: row 1 is not one run of ones among zeros"):
        runs_of(torch.tensor([[1, 1, 1, 1], row]))
