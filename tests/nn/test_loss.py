import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer.nn.loss import chunked_cross_entropy

VOCABULARY = 97


@pytest.fixture
def head():
    return torch.nn.Linear(8, VOCABULARY)


def features(dtype=torch.float32):
    return torch.randn(2, 40, 8, dtype=dtype, requires_grad=True)


def targets():
    return torch.randint(VOCABULARY, (2, 40))


@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_value_and_gradients_are_those_of_whole_logits(head, rows):
    head.double()
    x, expected = features(torch.float64), targets()
    expected[0, :11] = -1
    whole = F.cross_entropy(head(x).flatten(0, 1), expected.flatten(), ignore_index=-1)
    loss = chunked_cross_entropy(x, expected, head, rows=rows)
    torch.testing.assert_close(loss, whole)
    inputs = (x, head.weight, head.bias)
    for found, right in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(whole, inputs), strict=True):
        torch.testing.assert_close(found, right)


class LogitRows(TorchDispatchMode):
    """Watches every operation and keeps the most rows of logits that one tensor had."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCABULARY,):
            self.most = max(self.most, result.numel() // VOCABULARY)
        return result


def test_no_tensor_holds_more_rows_of_logits_and_none_is_kept(head):
    kept = []
    keeping = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t)
    with LogitRows() as seen, keeping:
        loss = chunked_cross_entropy(features(), targets(), head, rows=16)
    with seen:
        loss.backward()
    assert seen.most == 16
    assert kept and not any(shape[-1:] == (VOCABULARY,) for shape in kept)


def test_by_default_a_thousand_tokens_have_logits(head):
    with LogitRows() as seen:
        chunked_cross_entropy(torch.randn(2, 1500, 8), torch.zeros(2, 1500, dtype=torch.int64), head)
    assert seen.most == 1024


def test_no_target_at_all_is_a_loss_of_zero(head):
    loss = chunked_cross_entropy(features(), torch.full((2, 40), -1), head)
    loss.backward()
    assert loss.item() == 0
    assert not head.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(head, dtype):
    head.to(dtype)
    x, expected = features(dtype), targets()
    loss = chunked_cross_entropy(x, expected, head)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(head(x).float().flatten(0, 1), expected.flatten()))
