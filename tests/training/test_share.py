"""Shares are those of `torch.tensor_split`, and together they are everything."""

import torch

from gossamer.training.share import WHOLE, Share


def test_shares_are_those_of_tensor_split() -> None:
    for count in range(9):
        x = torch.arange(count)
        for of in range(1, 6):
            for place, expected in enumerate(x.tensor_split(of)):
                share = Share(place, of)
                assert list(share.among(count)) == expected.tolist()
                assert torch.equal(share.taken(x[None].expand(2, -1), 1)[0], expected)
        assert list(WHOLE.among(count)) == list(range(count))
