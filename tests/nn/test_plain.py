import pytest
import torch

from gossamer.nn.plain import is_plain


def test_plain_is_what_does_no_more_than_its_weights():
    class Own(torch.nn.Linear):
        pass

    assert is_plain(torch.nn.Linear(2, 2))
    assert not is_plain(Own(2, 2))
    assert not is_plain(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "register",
    [
        torch.nn.Linear.register_forward_pre_hook,
        torch.nn.Linear.register_forward_hook,
        torch.nn.Linear.register_full_backward_pre_hook,
        torch.nn.Linear.register_full_backward_hook,
    ],
)
def test_hooks_do_more(register):
    layer = torch.nn.Linear(2, 2)
    register(layer, lambda *_: None)
    assert not is_plain(layer)


def test_a_forward_of_its_own_does_more():
    """As libraries have it that bring weights in when a layer is called."""
    layer = torch.nn.Linear(2, 2)
    layer.forward = lambda x: x
    assert not is_plain(layer)
