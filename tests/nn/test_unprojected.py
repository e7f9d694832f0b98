"""Reading a sequence that is never projected, beside projecting it."""

import pytest
import torch
import torch.nn.functional as F

from gossamer.nn.heads import merged, split
from gossamer.nn.unprojected import attend_unprojected

LENGTH, WIDTH, HEADS = 30, 24, 4
PLACES = torch.tensor([[3, 29], [0, 17]])
SEEN = {
    "all": None,
    "some": torch.arange(LENGTH) <= PLACES[..., None],
}
seen_cases = pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN.keys())


def projections(bias=True):
    return torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(3)).double()


def drawn(size=1.0):
    return (size * torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)).requires_grad_()


def projecting(x, modules, seen):
    rows = x.gather(1, PLACES[..., None].expand(-1, -1, WIDTH))
    q, k, v = (split(module(y), HEADS) for module, y in zip(modules, (rows, x, x), strict=True))
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=None if seen is None else seen[:, None]))


def gradients(out, x, modules):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), [x, *modules.parameters()])


@seen_cases
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 1e-12])
def test_it_is_attention_to_projections(seen, bias, dropout):
    x, modules = drawn(), projections(bias)
    found = attend_unprojected(x, PLACES, modules, HEADS, seen=seen, dropout=dropout).flatten(2)
    right = projecting(x, modules, seen)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
    for pair in zip(gradients(found, x, modules), gradients(right, x, modules), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    modules = projections()
    assert torch.autograd.gradcheck(
        lambda x, *_: attend_unprojected(x, PLACES, modules, HEADS, seen=SEEN["some"]), (drawn(), *modules.parameters())
    )


def test_the_bias_of_keys_has_a_gradient_of_zeros():
    x, modules = drawn(), projections()
    attend_unprojected(x, PLACES, modules, HEADS).square().sum().backward()
    assert not modules[1].bias.grad.any()


def test_dropout_drops_values_and_their_bias_alike():
    """Of equal values the output is their number times what is kept: each weight stands once or not at all."""
    x, modules = drawn(), projections()
    torch.nn.init.zeros_(modules[2].weight)
    torch.nn.init.ones_(modules[2].bias)
    torch.nn.init.zeros_(modules[0].weight)
    torch.nn.init.zeros_(modules[0].bias)  # all weights are 1 / LENGTH
    out = attend_unprojected(x, PLACES, modules, HEADS, dropout=0.5)
    kept = out * LENGTH * 0.5
    torch.testing.assert_close(kept, kept.round())
    assert kept.std() > 0
    assert 0.3 < kept.mean() / LENGTH < 0.7
    torch.testing.assert_close(out, out[..., :1].expand_as(out))


@pytest.mark.parametrize("size", [1.0, 4.0])
def test_in_half_precision_it_errs_no_more_than_projecting_does(size):
    x, modules = drawn(size), projections()
    right = projecting(x, modules, None)
    modules, x = modules.bfloat16(), x.bfloat16()
    error = [
        (found.double() - right).norm().item()
        for found in (attend_unprojected(x, PLACES, modules, HEADS).flatten(2), projecting(x, modules, None))
    ]
    assert error[0] < 1.5 * error[1]
