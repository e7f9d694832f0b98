import pytest
import torch

from gossamer.nn.projections import is_plain, projected

WIDTH = 6


def drawn(tokens, bias=True):
    layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(3)).double()
    return torch.randn(2, tokens, WIDTH, dtype=torch.float64, requires_grad=True), layers


def called(x, layers):
    return [layer(x) for layer in layers]


def check(x, layers):
    found, right = projected(x, layers), called(x, layers)
    weights = [torch.randn_like(y) for y in right]
    sums = [sum((y * weight).sum() for y, weight in zip(ys, weights, strict=True)) for ys in (found, right)]
    gradients = [torch.autograd.grad(total, [x, *layers.parameters()]) for total in sums]
    for pair in (*zip(found, right, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


def is_one(ys):
    return len({y.untyped_storage().data_ptr() for y in ys}) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_plain_layers_are_one_product(bias):
    x, layers = drawn(3, bias)
    assert is_one(projected(x, layers))
    check(x, layers)


def test_fewer_tokens_than_the_width_are_not_worth_a_copy_of_the_weights():
    x, layers = drawn(2)
    assert not is_one(projected(x, layers))
    check(x, layers)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_layer_that_does_more_is_called(number):
    x, layers = drawn(3)
    layers[number] = torch.nn.Sequential(layers[number], torch.nn.GELU())
    check(x, layers)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_hooks_are_called(number):
    x, layers = drawn(3)
    layers[number].register_forward_hook(lambda module, inputs, output: output.sin())
    check(x, layers)


def test_plain_is_what_a_call_of_the_weights_is():
    class Own(torch.nn.Linear):
        pass

    layer = torch.nn.Linear(2, 2)
    assert is_plain(layer) and not is_plain(Own(2, 2))
    layer.register_forward_pre_hook(lambda *_: None)
    assert not is_plain(layer)
