import pytest
import torch

from gossamer.nn.global_tokens import GlobalTokens

MASKS = {
    "mixed": [[0, 1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]],
    "all": [[1] * 7, [0, 1] * 3 + [0], [1] + [0] * 6],
    "one row": [[0, 0, 1, 0, 0, 1, 1]],
    "one each": [[0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]],
}
masks = pytest.mark.parametrize("mask", list(map(torch.tensor, MASKS.values())), ids=MASKS.keys())


@masks
def test_they_are_the_true_ones_in_order(mask):
    chosen = GlobalTokens.of(mask == 1)
    assert chosen.counts.dtype == torch.int32
    assert chosen.counts.tolist() == mask.sum(1).tolist()
    assert chosen.most == mask.sum(1).max()
    for row, (index, count) in enumerate(zip(chosen.index, chosen.counts, strict=True)):
        assert index[:count].tolist() == mask[row].nonzero().flatten().tolist()
        assert len(set(index.tolist())) == chosen.most  # what follows is each once: no gradient meets another
    assert chosen.places.tolist() == mask.flatten().nonzero().flatten().tolist()


@masks
def test_rows_go_out_and_come_back_to_their_places(mask):
    chosen, x = GlobalTokens.of(mask == 1), torch.randn(*mask.shape, 5)
    rows = chosen.rows_of(x)
    assert torch.equal(chosen.put(rows, x), x)
    put = chosen.put(rows + 1, x)
    assert torch.equal(put, torch.where(mask[..., None] == 1, x + 1, x))


@masks
@pytest.mark.parametrize("step", [1, 2, 3, 10])
@pytest.mark.parametrize("reach", [0, 2, 4, 40])
def test_beyond_is_what_the_window_leaves(mask, step, reach):
    chosen, length = GlobalTokens.of(mask == 1), mask.shape[1]
    entries, start, stop, turn, back = chosen.beyond(reach, step)
    assert start.dtype == stop.dtype == torch.int32
    assert (start <= stop).all() and (start.diff(dim=1) >= 0).all() and (stop.diff(dim=1) >= 0).all()
    turn = torch.arange(length) if turn is None else turn
    assert back is None or torch.equal(turn[back], torch.arange(length))
    for row in range(len(mask)):
        tokens = mask[row].nonzero().flatten().tolist()
        for place, position in enumerate(turn.tolist()):
            run = entries[row, start[row, place] : stop[row, place]]
            found = chosen.index[row][run].tolist()
            right = [g for g in tokens if abs(g - position) > reach or (g - position) % step]
            assert sorted(found) == right


@masks
@pytest.mark.parametrize("reach", [0, 2, 40])
def test_earlier_counts_what_stands_before_the_window(mask, reach):
    earlier = GlobalTokens.of(mask == 1).earlier(reach)
    for row in range(len(mask)):
        tokens = mask[row].nonzero().flatten().tolist()
        assert earlier[row].tolist() == [sum(g < i - reach for g in tokens) for i in range(mask.shape[1])]


@masks
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("steps", [(1,), (3,), (1, 2, 10)])
@pytest.mark.parametrize("side", [1, 2, 40])
def test_outside_opens_what_the_window_leaves(mask, side, steps, causal):
    chosen = GlobalTokens.of(mask == 1)
    found = chosen.outside(side, steps, causal)
    assert found.shape == (len(mask), len(steps), chosen.most, mask.shape[1])
    assert found.unique().tolist() in ([-torch.inf, 0.0], [-torch.inf], [0.0])
    for row, head, slot, position in torch.ones_like(found).nonzero().tolist():
        token, step = chosen.index[row, slot].item(), steps[head]
        near = abs(position - token) <= side * step and (position - token) % step == 0
        hidden = causal and token > position
        assert (found[row, head, slot, position] == 0) == (slot < chosen.counts[row] and not near and not hidden)


@masks
def test_flat_entries_are_the_index_in_the_whole_batch(mask):
    chosen = GlobalTokens.of(mask == 1)
    rows = mask.shape[1] * torch.arange(len(mask))[:, None]
    assert torch.equal(chosen.flat, (chosen.index + rows).flatten())
    assert torch.equal(chosen.mask, mask == 1)


def test_a_mask_may_be_written_to_afterwards():
    mask = torch.tensor(MASKS["mixed"]) == 1
    chosen, right = GlobalTokens.of(mask), mask.clone()
    mask.fill_(True)
    assert torch.equal(chosen.mask, right)


def test_slices_are_where_heads_lie():
    found = GlobalTokens.of(torch.tensor(MASKS["mixed"]) == 1).slices(2, 3, torch.float64)
    assert found.dtype == torch.float64
    assert found.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]


def test_layers_share_what_was_found():
    chosen = GlobalTokens.of(torch.tensor(MASKS["mixed"]) == 1)
    assert chosen.outside(2, (1,), False) is chosen.outside(2, (1,), False)
    assert chosen.outside(2, (1,), False) is not chosen.outside(2, (1,), True)
    assert chosen.slices(2, 3, torch.float32) is chosen.slices(2, 3, torch.float32)
    assert chosen.beyond(2, 1) is chosen.beyond(2, 1)
    assert chosen.beyond(2, 1) is not chosen.beyond(4, 2)


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ValueError, match=r"mask is torch\.int64 \[1, 3\]; give bool"):
        GlobalTokens.of(torch.tensor([[1, 0, 1]]))
