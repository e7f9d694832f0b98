import pytest
import torch

from gossamer.nn.shares import attend_by_few, attend_to_few, shares_for
from gossamer.runs import attend_runs

LONG, FEW, BATCH, HEADS, WIDTH = 300, 5, 2, 3, 8
shares = pytest.mark.parametrize("shares", [1, 2, 3, 7, 300])


def drawn(*lengths):
    shapes = [(BATCH, HEADS, length, WIDTH) for length in lengths]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def runs(queries, keys):
    ends = torch.randint(0, keys + 1, (2, BATCH, queries)).sort(-1).values.int()
    return ends.amin(0), ends.amax(0)


def check(found, right, inputs):
    torch.testing.assert_close(found, right)
    weights = [torch.randn_like(x) for x in right]
    sums = [sum((x.nan_to_num(neginf=0) * w).sum() for x, w in zip(y, weights, strict=True)) for y in (found, right)]
    gradients = (torch.autograd.grad(y, inputs) for y in sums)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@shares
def test_many_queries_to_few_keys(shares):
    q, k, v = drawn(LONG, FEW, FEW)
    start, stop = runs(LONG, FEW)
    right = attend_runs(q, k, v, start, stop, return_lse=True)
    check(attend_to_few(q, k, v, start, stop, shares=shares), right, (q, k, v))


@shares
@pytest.mark.parametrize("alike", [False, True])
def test_few_queries_to_many_keys(shares, alike):
    q, k, v = drawn(FEW, LONG, LONG)
    start, stop = runs(FEW, LONG)
    if alike:
        start, stop = (torch.full((BATCH, FEW), end, dtype=torch.int32) for end in (17, 250))
    right = attend_runs(q, k, v, start, stop)
    check([attend_by_few(q, k, v, start, stop, shares=shares)], [right], (q, k, v))


def test_queries_that_see_nothing_have_zeros_and_no_gradients():
    q, k, v = drawn(FEW, LONG, LONG)
    none = torch.zeros(BATCH, FEW, dtype=torch.int32)
    out = attend_by_few(q, k, v, none, none, shares=3)
    assert not out.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(out.sum(), (q, k, v)))


def test_a_cpu_has_one_share_and_a_gpu_enough_for_its_processors():
    class OnGPU:
        is_cuda = True

        def __init__(self, *shape):
            self.shape = shape

    assert shares_for(torch.zeros(1, 2, 10**5, 1), few=1) == 1
    assert shares_for(OnGPU(1, 12, 65536, 64), few=1) == 22
    assert shares_for(OnGPU(1, 12, 65536, 64), few=129) == 11
    assert shares_for(OnGPU(1, 12, 4096, 64), few=1) == 4
    assert shares_for(OnGPU(32, 12, 4096, 64), few=1) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("shares", [1, 22])
def test_a_gpu_computes_the_same(shares):
    q, k, v = (x.detach().float().cuda() for x in drawn(FEW, 5000, 5000))
    start, stop = (end.cuda() for end in runs(FEW, 5000))
    right = attend_runs(*(x.cpu() for x in (q, k, v, start, stop)))
    torch.testing.assert_close(attend_by_few(q, k, v, start, stop, shares=shares).cpu(), right, rtol=1e-3, atol=1e-4)
