import pytest
import torch

from gossamer.nn.heads import apart, merged, split, together


def test_heads_are_slices_of_the_width():
    x = torch.arange(24.0).view(1, 2, 12)
    assert split(x, 3)[0, 2, 1].tolist() == [20, 21, 22, 23]
    assert torch.equal(merged(split(x, 3)), x)
    assert merged(split(x, 3)).data_ptr() == x.data_ptr()


SLICES = torch.eye(3).repeat_interleave(4, 1)


@pytest.mark.parametrize("few", [1, 4])
def test_rows_apart_give_each_head_its_own_product(few):
    x, rows = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, few, 12, dtype=torch.float64)
    product = apart(rows, SLICES.double()) @ x.mT
    torch.testing.assert_close(product.view(2, 3, few, 7), split(rows, 3) @ split(x, 3).mT)


@pytest.mark.parametrize("few", [1, 4])
def test_together_is_the_gradient_of_apart(few):
    rows = torch.randn(2, few, 12, requires_grad=True)
    grad = torch.randn(2, 3 * few, 12)
    (right,) = torch.autograd.grad(apart(rows, SLICES), rows, grad)
    assert torch.equal(together(grad, 3).flatten(2), right)
