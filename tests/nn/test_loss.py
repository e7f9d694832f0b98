import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer.nn.loss import linear_cross_entropy

VOCABULARY = 97


@pytest.fixture
def weight():
    return torch.randn(VOCABULARY, 8, requires_grad=True)


def features(dtype=torch.float32):
    return torch.randn(2, 40, 8, dtype=dtype, requires_grad=True)


def targets():
    return torch.randint(VOCABULARY, (2, 40))


def whole(x, weight, expected, known=VOCABULARY):
    """The same from all logits at once, in the widest dtype at hand."""
    logits = F.linear(x, weight)[..., :known]
    return F.cross_entropy(logits.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, 1), expected.flatten())


@pytest.mark.parametrize("known", [VOCABULARY, 90])
@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_value_and_gradients_are_those_of_whole_logits(rows, known):
    x, weight = features(torch.float64), torch.randn(VOCABULARY, 8, dtype=torch.float64, requires_grad=True)
    expected = torch.randint(known, (2, 40))
    right = whole(x, weight, expected, known)
    loss = linear_cross_entropy(x, weight, expected, known=known, rows=rows)
    torch.testing.assert_close(loss, right)
    inputs = (x, weight)
    for found, wanted in zip(
        torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * right, inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rows", [7, 1000])
def test_a_bias_is_added_to_the_logits(weight, rows):
    x, bias, expected = features(), torch.randn(VOCABULARY, requires_grad=True), targets()
    right = F.cross_entropy(F.linear(x, weight, bias).flatten(0, 1), expected.flatten())
    loss = linear_cross_entropy(x, weight, expected, bias=bias, rows=rows)
    torch.testing.assert_close(loss, right)
    inputs = (x, weight, bias)
    for found, wanted in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(right, inputs), strict=True):
        torch.testing.assert_close(found, wanted)


def test_ignored_targets_count_for_nothing(weight):
    x, expected = features(), targets()
    expected[0, :11] = -1
    loss = linear_cross_entropy(x, weight, expected, rows=16)
    seen = (expected != -1).flatten()
    right = F.cross_entropy(F.linear(x.flatten(0, 1)[seen], weight), expected.flatten()[seen])
    torch.testing.assert_close(loss, right)
    for found, wanted in zip(
        torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(right, (x, weight)), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_without_gradients_the_value_is_the_same_bit_for_bit(weight):
    x, expected = features(), targets()
    with torch.no_grad():
        alone = linear_cross_entropy(x, weight, expected, rows=16)
    assert not alone.requires_grad
    assert torch.equal(alone, linear_cross_entropy(x, weight, expected, rows=16))


class Logits(TorchDispatchMode):
    """Watches every operation: the most rows of logits that one tensor had, and how many products were taken."""

    def __init__(self):
        super().__init__()
        self.most, self.products = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += function is torch.ops.aten.mm.default
        if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCABULARY,):
            self.most = max(self.most, result.numel() // VOCABULARY)
        return result


def test_no_tensor_holds_more_rows_of_logits_and_none_is_kept_or_made_twice(weight):
    kept = []
    keeping = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t)
    with Logits() as seen, keeping:
        loss = linear_cross_entropy(features(), weight, targets(), rows=16)
    assert seen.most == 16 and seen.products == 3 * 5
    assert kept and not any(shape[-1:] == (VOCABULARY,) for shape in kept)
    with seen:
        loss.backward()
    assert seen.products == 3 * 5


def test_where_no_gradient_is_asked_for_none_is_made(weight):
    with Logits() as seen, torch.no_grad():
        linear_cross_entropy(features(), weight, targets(), rows=16)
    assert seen.products == 5


def test_by_default_a_thousand_tokens_have_logits(weight):
    with Logits() as seen:
        linear_cross_entropy(torch.randn(2, 1500, 8), weight, torch.zeros(2, 1500, dtype=torch.int64))
    assert seen.most == 1024


def test_no_target_at_all_is_a_loss_of_zero(weight):
    loss = linear_cross_entropy(features(), weight, torch.full((2, 40), -1))
    loss.backward()
    assert loss.item() == 0
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(weight, dtype):
    x, weight, expected = features(dtype), weight.detach().to(dtype).requires_grad_(), targets()
    loss = linear_cross_entropy(x, weight, expected, rows=16)
    assert loss.dtype == torch.float32
    right = whole(x, weight, expected)
    torch.testing.assert_close(loss, right)
    for found, wanted in zip(
        torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(right, (x, weight)), strict=True
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_the_products_and_the_gradients_stay_float32(weight, dtype):
    x, expected = features(), targets()
    with torch.autocast("cpu", dtype):
        loss = linear_cross_entropy(x, weight, expected)
    right = whole(x, weight, expected)
    torch.testing.assert_close(loss, right, rtol=1e-2, atol=0.0)
    for found, wanted in zip(
        torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(right, (x, weight)), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=5e-2, atol=1e-3)


def test_fp16_gradients_of_rare_tokens_do_not_vanish():
    """Among many tokens each has a tiny share of the mean, which fp16 could not hold before it is scaled."""
    x, weight = torch.randn(1, 1000, 8, requires_grad=True), torch.zeros(5000, 8, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(x, weight, torch.zeros(1, 1000, dtype=torch.int64))
    loss.backward()
    torch.testing.assert_close(weight.grad[1], x[0].mean(0) / 5000, rtol=2e-2, atol=1e-7)


def test_gradients_of_gradients_are_refused(weight):
    x = features()
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(linear_cross_entropy(x, weight, targets()), x, create_graph=True)


def test_it_compiles_in_one_graph(weight):
    x, expected = features(), targets()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    found, right = compiled(x, weight, expected, rows=16), linear_cross_entropy(x, weight, expected, rows=16)
    torch.testing.assert_close(found, right)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, weight)), torch.autograd.grad(right, (x, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
