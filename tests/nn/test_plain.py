import torch

from gossamer.nn.plain import is_plain


def test_plain_is_what_does_no_more_than_its_weights():
    class Own(torch.nn.Linear):
        pass

    assert is_plain(torch.nn.Linear(2, 2))
    assert not is_plain(Own(2, 2))
    assert not is_plain(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_hooks_do_more():
    before, after = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before.register_forward_pre_hook(lambda *_: None)
    after.register_forward_hook(lambda *_: None)
    assert not is_plain(before) and not is_plain(after)
