"""`AxialPositions` are those of Hugging Face's Reformer, at any length that the grid holds."""

import pytest
import torch
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import AxialPositionEmbeddings

from gossamer.nn.axial import AxialPositions

SHAPE, WIDTHS = (4, 6), (3, 5)


def both(dropout: float = 0.0) -> tuple[AxialPositions, AxialPositionEmbeddings]:
    ours = AxialPositions(SHAPE, WIDTHS, dropout=dropout)
    theirs = AxialPositionEmbeddings(
        ReformerConfig(hidden_size=8, axial_pos_shape=SHAPE, axial_pos_embds_dim=WIDTHS, hidden_dropout_prob=dropout)
    )
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("length", [1, 5, 6, 7, 23, 24])
def test_they_are_hugging_face_s(length: int) -> None:
    ours, theirs = both()
    wanted = theirs.eval()(torch.arange(length).expand(2, length))
    torch.testing.assert_close(ours(length).expand(2, -1, -1), wanted)


def test_gradients_reach_every_table() -> None:
    ours, theirs = both()
    weight = torch.randn(24, 8)
    found = torch.autograd.grad((ours(24) * weight).sum(), list(ours.weights))
    wanted = torch.autograd.grad((theirs(torch.arange(24)[None]) * weight).sum(), list(theirs.weights))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_three_axes_fill_row_by_row() -> None:
    ours = AxialPositions((2, 3, 4), (1, 1, 2))
    a, b, c = (table.detach().squeeze() for table in ours.weights)
    whole = ours(24)[0]
    for position in (0, 1, 4, 11, 12, 23):
        i, j, k = position // 12, position // 4 % 3, position % 4
        assert torch.equal(whole[position], torch.cat([a[i, None], b[j, None], c[k]]))
    assert torch.equal(ours(17), ours(24)[:, :17])


def test_dropout_drops_what_shares_its_last_coordinate() -> None:
    """Each sequence by itself, the rest scaled up; in evaluation nothing."""
    ours = AxialPositions(SHAPE, WIDTHS, dropout=0.5)
    dropped = ours(23, batch=64)
    whole = ours.eval()(23)
    kept = (dropped != 0).all(-1)
    assert torch.equal(dropped, torch.where(kept[..., None], 2 * whole, 0))
    for position in range(23):
        assert torch.equal(kept[:, position], kept[:, position % 6])
    assert 0.3 < kept.float().mean() < 0.7
    assert not torch.equal(kept[0], kept[1]) or not torch.equal(kept[0], kept[2])


def test_too_many_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"25 positions do not fit the grid \(4, 6\) of 24; give fewer tokens"):
        both()[0](25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (((4, 6), (8,)), r"shape is \(4, 6\) and widths is \(8,\); give one width for each axis"),
        (((4, 0), (4, 4)), "an entry of shape is 0; give an integer of at least 1"),
        (((), ()), r"shape is \(\); give a list"),
    ],
)
def test_bad_settings_are_refused(settings: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"AxialPositions: {message}"):
        AxialPositions(*settings)
