"""Documents in one row are each as if alone: outputs, losses, gradients and, exactly, who sees whom."""

import numpy as np
import pytest
import torch

from gossamer import GPT2, GPT2Config
from gossamer.config import IndexerConfig, SparseAttentionConfig
from gossamer.nn import packing
from gossamer.nn.packing import Packing, document_lengths
from gossamer.nn.recomputation import Keeping, keeping_attention
from gossamer.patterns import Causal, Documents, Packed, PerHead, Sinks, Strided, Window

CONTEXT = 40
LENGTHS = (1, 9, 40, 3, 17, 2, 26)
MODELS = {
    "design": {"sparse_config": SparseAttentionConfig(2, 1, window_size=6, min_window_size=2)},
    "dense": {"use_sparse_attention": False},
    "windows": {
        "use_sparse_attention": False,
        "windows": (5, 9),
        "dilations": (1, 3),
        "dilated_heads": 1,
        "positions": "rotary",
    },
}


def model(kind: str, **settings) -> GPT2:
    torch.manual_seed(0)
    shape = {"vocab_size": 31, "context_size": CONTEXT, "n_layer": 2, "n_head": 3, "n_embed": 24, "dropout": 0.0}
    made = GPT2(GPT2Config(**{**shape, "use_sparse_attention": True, **MODELS[kind], **settings})).double()
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return made


def row(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of documents of LENGTHS behind each other, and targets of which the last of a document is none."""
    tokens = torch.randint(31, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(seed))
    targets = tokens.roll(-1, 1)
    targets[0, np.cumsum(LENGTHS) - 1] = -1
    return tokens, targets


def gradients(made: GPT2) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in made.named_parameters()}


def check_loss_and_gradients(kind: str, checkpointing: bool | Keeping = False) -> None:
    tokens, targets = row()
    packed, alone = model(kind), model(kind)
    packed.checkpointing = checkpointing
    loss = packed(tokens, targets, cache=Packing(LENGTHS, capacity=CONTEXT)).loss
    loss.backward()
    expected, whole = 0.0, (targets >= 0).sum()
    for part, wanted in zip(tokens.split(LENGTHS, 1), targets.split(LENGTHS, 1), strict=True):
        share = alone(part, wanted, planned_length=CONTEXT).loss * (wanted >= 0).sum() / whole
        share.backward()
        expected += share.item()
    eps = torch.finfo(torch.float64).eps
    assert loss.item() == pytest.approx(expected, rel=50 * eps)
    for name, gradient in gradients(packed).items():
        wanted = gradients(alone)[name]
        assert (gradient - wanted).abs().max() <= 200 * eps * wanted.abs().max(), name


@pytest.mark.parametrize("checkpointing", [False, True, keeping_attention], ids=["kept", "recomputed", "selective"])
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradients_are_those_of_each_document_alone(kind: str, checkpointing: bool | Keeping) -> None:
    check_loss_and_gradients(kind, checkpointing)


def patterns_from_the_rows_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "Packed", lambda pattern, lengths: pattern & Documents(lengths))


def documents_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "Packed", lambda pattern, lengths: pattern)


def positions_that_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packing, "positions", lambda self, tokens, device: torch.arange(tokens) % CONTEXT)


def documents_that_end_a_token_late(monkeypatch: pytest.MonkeyPatch) -> None:
    late = (LENGTHS[0] + 1, LENGTHS[1] - 1, *LENGTHS[2:])
    monkeypatch.setattr(packing, "Packed", lambda pattern, lengths: Packed(pattern, late))


FAULTS = (
    patterns_from_the_rows_start,
    documents_that_see_each_other,
    positions_that_go_on,
    documents_that_end_a_token_late,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_seen(fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_loss_and_gradients("design")


@pytest.mark.parametrize("kind", MODELS)
def test_another_document_changes_no_bit(kind: str) -> None:
    made, (tokens, _) = model(kind).float(), row()
    before = made(tokens, cache=Packing(LENGTHS)).logits[0].split(LENGTHS)
    starts = np.cumsum((0, *LENGTHS))
    for changed in range(len(LENGTHS)):
        other = tokens.clone()
        other[0, starts[changed] : starts[changed + 1]] = (other[0, starts[changed] : starts[changed + 1]] + 7) % 31
        after = made(other, cache=Packing(LENGTHS)).logits[0].split(LENGTHS)
        assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [
            number != changed for number in range(len(LENGTHS))
        ]


PATTERNS = {
    "design": SparseAttentionConfig(2, 1, window_size=6, min_window_size=2).pattern(CONTEXT),
    "sinks and strides": Causal() & (Window(3) | Sinks(2) | Strided(4)),
    "each head its own": PerHead([(Causal() & Window(2), 1), (Causal() & Strided(5), 2)]),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_who_sees_whom_is_exactly_the_pattern_of_each_document(name: str) -> None:
    length, pattern = sum(LENGTHS), PATTERNS[name]
    still, probe = torch.zeros(1, 3, length, length), torch.eye(length).expand(1, 3, -1, -1)
    seen = Packing(LENGTHS).attend(0, still, still, probe, pattern)[0] > 0
    for head in range(3):
        blocks = [torch.from_numpy(pattern.for_head(head).dense_mask(length)) for length in LENGTHS]
        assert torch.equal(seen[head], torch.block_diag(*blocks).bool())


def test_one_document_is_a_row_without_packing() -> None:
    made, (tokens, _) = model("design"), row()
    tokens = tokens[:, :CONTEXT]
    assert torch.equal(made(tokens, cache=Packing([CONTEXT])).logits, made(tokens).logits)


def test_rows_of_a_batch_may_share_a_packing() -> None:
    made, rows = model("design"), torch.cat([row(0)[0], row(1)[0]])
    both = made(rows, cache=Packing(LENGTHS)).logits
    for each, alone in zip(both, rows, strict=True):
        torch.testing.assert_close(each, made(alone[None], cache=Packing(LENGTHS)).logits[0])


def test_a_model_runs_a_row_longer_than_its_context() -> None:
    assert sum(LENGTHS) > 2 * CONTEXT
    with pytest.raises(ValueError, match="tokens reach position 41, beyond context_size=40"):
        model("design")(torch.zeros(1, 41, dtype=torch.int64), cache=Packing([41]))


def test_positions_begin_anew_in_each_document() -> None:
    found = Packing(LENGTHS).positions(sum(LENGTHS), torch.device("cpu"))
    assert found.tolist() == [place for length in LENGTHS for place in range(length)]
    with pytest.raises(ValueError, match="the documents have 98 tokens together, and the row 97; give lengths"):
        Packing(LENGTHS).positions(97, torch.device("cpu"))


def test_documents_end_with_their_token_and_with_their_row() -> None:
    tokens = torch.tensor([[1, 2, 9, 3], [9, 9, 4, 9], [5, 6, 7, 8]])
    assert document_lengths(tokens, 9) == (3, 1, 1, 1, 2, 4)
    assert document_lengths(tokens, 0) == (4, 4, 4)
    assert tokens.tolist() == [[1, 2, 9, 3], [9, 9, 4, 9], [5, 6, 7, 8]]


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="a document has 40 tokens, beyond capacity=39; cut it"):
        Packing(LENGTHS, capacity=39)
    with pytest.raises(ValueError, match="length"):
        Packing([3, 0])
    indexer = IndexerConfig(index_n_heads=2, index_head_dim=8, index_topk=4, qk_rope_head_dim=4)
    chooses = model("dense", indexer=indexer)
    with pytest.raises(ValueError, match="chooses its keys at run time, from other documents too"):
        chooses(row()[0], cache=Packing(LENGTHS))
    with pytest.raises(ValueError, match="return_intermediate gives the masks of one whole sequence"):
        model("design")(row()[0], cache=Packing(LENGTHS), return_intermediate=True)
