import pytest
import torch

from gossamer.nn.cache import KVCache


def cache(**changes):
    return KVCache(**{"layers": 2, "batch": 1, "heads": 3, "capacity": 8, "width": 4, **changes})


def keys(tokens, seed=0):
    return torch.randn(1, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


def test_append_returns_everything_so_far_in_order():
    held = cache()
    pieces = [keys(3, 1), keys(1, 2), keys(4, 3)]
    for number, piece in enumerate(pieces, start=1):
        k, v = held.append(0, piece, -piece)
        held.append(1, 2 * piece, piece)
        held.advance(piece.shape[2])
        expected = torch.cat(pieces[:number], dim=2)
        assert torch.equal(k, expected)
        assert torch.equal(v, -expected)
    assert held.length == held.capacity == 8


def test_append_returns_views_and_moves_nothing():
    held = cache()
    first, _ = held.append(0, keys(3), keys(3))
    held.advance(3)
    second, _ = held.append(0, keys(2), keys(2))
    assert first.data_ptr() == second.data_ptr() == held.keys.data_ptr()


def test_layers_of_one_forward_write_at_the_same_place():
    held = cache()
    for layer in range(2):
        k, _ = held.append(layer, keys(3, layer), keys(3))
        assert torch.equal(k, keys(3, layer))
    assert held.length == 0


def test_a_full_cache_says_its_capacity_and_the_one_that_is_needed():
    held = cache()
    held.append(0, keys(7), keys(7))
    held.advance(7)
    with pytest.raises(ValueError, match=r"full: 7 of capacity=8 .* 2 more .* capacity=9"):
        held.append(0, keys(2), keys(2))
    k, _ = held.append(0, keys(1), keys(1))
    assert k.shape[2] == 8


@pytest.mark.parametrize("shape", [(2, 3, 1, 4), (1, 2, 1, 4), (1, 3, 1, 5), (1, 3, 4)])
def test_keys_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"v has shape .* holds \[1, 3, tokens, 4\]"):
        cache().append(0, keys(1), torch.zeros(shape))


def test_keys_of_another_dtype_are_refused_and_the_right_one_named():
    with pytest.raises(ValueError, match=r"dtype=torch\.bfloat16"):
        cache().append(0, keys(1).bfloat16(), keys(1))
    k, _ = cache(dtype=torch.bfloat16).append(0, keys(1).bfloat16(), keys(1).bfloat16())
    assert k.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["layers", "batch", "heads", "capacity", "width"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        cache(**{name: 0})
