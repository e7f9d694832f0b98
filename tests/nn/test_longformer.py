"""Longformer's attention against its definition: dense masks, in float64."""

import pytest
import torch

from gossamer import attend
from gossamer.nn.global_tokens import GlobalTokens
from gossamer.nn.longformer import LongformerAttention

WIDTH, HEADS, LENGTH = 24, 4, 37
WITHIN = {
    "whole": None,
    "padded right": [[0, 37], [0, 20], [0, 29]],
    "padded left": [[4, 37], [17, 37], [0, 37]],
    "one empty": [[0, 37], [0, 0], [3, 9]],
}
CHOSEN = {
    "none": [[], [], []],
    "the first": [[0], [0], [0]],
    "another number in each": [[5, 6, 7, 19], [], [8]],
    "many": [list(range(0, 37, 2)), [18], list(range(37))],
}
SHAPES = {
    "plain": {"window": 6},
    "wide": {"window": 100},
    "dilated": {"window": 4, "dilation": 3},
    "per head": {"window": 4, "dilation": (1, 1, 2, 5)},
    "causal": {"window": 6, "causal": True},
    "causal, dilated": {"window": 4, "dilation": (1, 3, 3, 1), "causal": True},
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture(params=[True, False], ids=["as few", "as many"])
def few(request, monkeypatch):
    """Runs a test in both ways, whatever the cost."""
    monkeypatch.setattr(LongformerAttention, "_are_few", lambda self, chosen: request.param)


both_ways = pytest.mark.usefixtures("few")


def attention(shape, **more):
    return LongformerAttention(WIDTH, HEADS, **shape, **more).double()


def mask_of(chosen, within):
    mask = torch.zeros(3, LENGTH, dtype=torch.bool)
    for row, positions in enumerate(chosen):
        mask[row, positions] = True
    return mask & valid(within)


def valid(within):
    positions = torch.arange(LENGTH)
    if within is None:
        return torch.ones(3, LENGTH, dtype=torch.bool)
    return (within[:, :1] <= positions) & (positions < within[:, 1:])


def definition(attention, x, within, mask):
    """What the paper says, pair by pair."""
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    windows = torch.stack(
        [((i - j).abs() <= attention.keys_on_a_side * step) & ((i - j) % step == 0) for step in attention.dilation]
    )
    inside = valid(within)[:, None, :, None] & valid(within)[:, None, None]
    past = (j <= i) | torch.tensor(not attention.causal)
    seen = (windows[None] | mask[:, None, None]) & past & inside  # [B, H, N, N]
    out = plainly(x, attention.query, attention.key, attention.value, seen)
    rows = plainly(x, attention.query_global, attention.key_global, attention.value_global, past & inside)
    return attention.output(torch.where(mask[..., None], rows, out))


def plainly(x, query, key, value, seen):
    q, k, v = (project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for project in (query, key, value))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).masked_fill(~seen, 0.0)  # NaN before, where nothing is seen
    return (weights @ v).transpose(1, 2).flatten(2)


def differentiated(attention, out, x, seed=2):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = {"x": x, **dict(attention.named_parameters())}
    gradients = torch.autograd.grad((out * weight).sum(), inputs.values(), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(inputs.items(), gradients, strict=True)
    }


def check(attention, within, mask, tolerance=1e-10):
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    found = attention(x, within=None if within is None else within.int(), chosen=GlobalTokens.of(mask))
    right = definition(attention, x, within, mask)
    torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)
    wanted = differentiated(attention, right, x)
    for name, gradient in differentiated(attention, found, x).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=tolerance, atol=tolerance, msg=name)


@both_ways
@shapes
@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN.keys())
@pytest.mark.parametrize("within", WITHIN.values(), ids=WITHIN.keys())
def test_it_is_the_definition_forward_and_backward(shape, chosen, within):
    within = None if within is None else torch.tensor(within)
    check(attention(shape), within, mask_of(chosen, within))


@shapes
def test_so_it_is_in_the_shares_that_a_gpu_has(shape, monkeypatch):
    monkeypatch.setattr("gossamer.nn.longformer.shares_for", lambda x, few: 3)
    within = torch.tensor(WITHIN["padded left"])
    check(attention(shape), within, mask_of(CHOSEN["another number in each"], within))


@both_ways
@shapes
def test_so_it_is_on_the_road_that_drops(shape):
    """A share of 1e-12 drops nothing, but runs as dropout does."""
    within = torch.tensor(WITHIN["padded left"])
    check(attention(shape, dropout=1e-12), within, mask_of(CHOSEN["another number in each"], within))


@both_ways
@shapes
def test_dropout_keeps_the_mean_and_acts_in_training_only(shape):
    drops = attention(shape, dropout=0.25)
    for linear in (drops.value, drops.value_global):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.ones_(linear.bias)  # the output is the sum of the weights
    torch.nn.init.eye_(drops.output.weight)
    torch.nn.init.zeros_(drops.output.bias)
    chosen = GlobalTokens.of(mask_of(CHOSEN["another number in each"], None))
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    drawn = torch.stack([drops(x, chosen=chosen) for _ in range(40)])
    assert drawn.std(0).min() > 0
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(drops.eval()(x, chosen=chosen), torch.ones_like(x))


@both_ways
def test_a_chosen_key_inside_the_window_counts_once(monkeypatch):
    """The same check sees the fault of counting it twice."""
    beyond, outside = GlobalTokens.beyond, GlobalTokens.outside

    def everywhere(self, reach, step):
        found = beyond(self, reach, step)
        return found._replace(start=torch.zeros_like(found.start), stop=found.stop * 0 + self.counts[:, None])

    monkeypatch.setattr(GlobalTokens, "beyond", everywhere)
    monkeypatch.setattr(GlobalTokens, "outside", lambda *args: torch.zeros_like(outside(*args)))
    with pytest.raises(AssertionError):
        check(attention(SHAPES["plain"]), None, mask_of(CHOSEN["the first"], None))


@pytest.mark.parametrize(("most", "few"), [(1, True), (3, True), (4, False), (37, False)])
def test_tokens_are_few_while_their_products_cost_half_a_projection(most, few):
    """4 heads of 3 tokens are half of the width of 24."""
    chosen = GlobalTokens.of((torch.arange(LENGTH) < most).expand(3, -1))
    assert attention(SHAPES["plain"])._are_few(chosen) == few


@both_ways
def test_every_weight_has_a_gradient():
    layer, x = attention(SHAPES["plain"]), torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    layer(x, chosen=GlobalTokens.of(mask_of(CHOSEN["the first"], None))).square().sum().backward()
    size = {name: parameter.grad.abs().max().item() for name, parameter in layer.named_parameters()}
    assert max(size.pop("key.bias"), size.pop("key_global.bias")) < 1e-12  # they move all scores of a query alike
    assert min(size.values()) > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 1e-12])
@pytest.mark.parametrize("name", ["query", "key", "value", "query_global", "key_global", "value_global"])
def test_a_projection_that_is_more_than_its_weights_is_called(name, dropout):
    layer = attention(SHAPES["plain"], dropout=dropout)
    setattr(layer, name, torch.nn.Sequential(getattr(layer, name), torch.nn.GELU()))
    check(layer, None, mask_of(CHOSEN["the first"], None))


@pytest.mark.parametrize("name", ["query_global", "key_global", "value_global"])
def test_hooks_of_a_projection_are_called(name):
    layer = attention(SHAPES["plain"])
    getattr(layer, name).register_forward_hook(lambda module, inputs, output: output.sin())
    check(layer, None, mask_of(CHOSEN["the first"], None))


@both_ways
def test_it_has_no_gradients_of_gradients():
    layer, x = attention(SHAPES["plain"]), torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    out = layer(x, chosen=GlobalTokens.of(mask_of(CHOSEN["the first"], None)))
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)[0].sum().backward()


def test_padding_gives_the_output_layer_zeros():
    layer = attention(SHAPES["plain"])
    torch.nn.init.zeros_(layer.output.bias)
    within = torch.tensor(WITHIN["padded left"])
    chosen = GlobalTokens.of(mask_of(CHOSEN["many"], within))
    out = layer(torch.randn(3, LENGTH, WIDTH, dtype=torch.float64), within=within.int(), chosen=chosen)
    assert not out[~valid(within)].any()
    assert out[valid(within)].all()


@pytest.mark.parametrize("shape", [SHAPES["causal"], SHAPES["causal, dilated"]])
@pytest.mark.parametrize("split", [1, 12, 20, 36])
def test_causal_tokens_see_the_past_alone(shape, split):
    """Other later tokens, and other choices among them, change no bit before them."""
    layer, x = attention(shape), torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    mask = mask_of(CHOSEN["another number in each"], None)
    other, choice = x.clone(), mask.clone()
    other[:, split:] = torch.randn(3, LENGTH - split, WIDTH, dtype=torch.float64)
    choice[:, split:] = torch.arange(LENGTH - split) % 3 == 0
    before, after = (layer(y, chosen=GlobalTokens.of(m)) for y, m in ((x, mask), (other, choice)))
    torch.testing.assert_close(before[:, :split], after[:, :split], rtol=0, atol=1e-14)
    assert (before[:, split:] - after[:, split:]).abs().max() > 1e-3


def test_causal_tokens_do_see_the_global_ones_of_their_past():
    layer, x = attention(SHAPES["causal"]), torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    mask = mask_of([[2], [2], [2]], None)
    other = x.clone()
    other[:, 2] += 1
    before, after = (layer(y, chosen=GlobalTokens.of(mask)) for y in (x, other))
    changed = (before - after).abs().amax(-1) > 1e-6
    assert not changed[:, :2].any() and changed[:, 2:].all()


def test_rows_of_a_batch_are_alone():
    layer, x = attention(SHAPES["per head"]), torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    mask = mask_of(CHOSEN["another number in each"], None)
    together = layer(x, chosen=GlobalTokens.of(mask))
    for row in range(3):
        alone = layer(x[row : row + 1], chosen=GlobalTokens.of(mask[row : row + 1]))
        torch.testing.assert_close(together[row : row + 1], alone)


@shapes
def test_without_global_tokens_it_is_a_window(shape):
    layer, x = attention(shape), torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    q, k, v = (
        project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for project in (layer.query, layer.key, layer.value)
    )
    right = layer.output(attend(q, k, v, layer.pattern).transpose(1, 2).flatten(2))
    assert torch.equal(layer(x), right)
    assert torch.equal(layer(x, chosen=GlobalTokens.of(mask_of(CHOSEN["none"], None))), right)


@both_ways
@pytest.mark.parametrize("shape", [SHAPES["per head"], SHAPES["causal"]], ids=["per head", "causal"])
def test_it_compiles_in_one_graph(shape):
    torch.compiler.reset()
    layer, within = attention(shape), torch.tensor(WITHIN["padded left"])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    for mask in (mask_of(CHOSEN["none"], within), mask_of(CHOSEN["another number in each"], within)):
        found, right = (f(x, within=within.int(), chosen=GlobalTokens.of(mask)) for f in (compiled, layer))
        torch.testing.assert_close(found, right)


@both_ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(dtype):
    layer = attention(SHAPES["per head"]).float()
    chosen = GlobalTokens.of(mask_of(CHOSEN["many"], None))
    x = torch.randn(3, LENGTH, WIDTH)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x, chosen=chosen)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), layer(x, chosen=chosen), rtol=0.05, atol=0.02)
    out.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@both_ways
@pytest.mark.parametrize("dropout", [0.0, 1e-12])
def test_what_was_made_without_gradients_serves_those_that_have_some(dropout):
    layer, chosen = attention(SHAPES["plain"], dropout=dropout), GlobalTokens.of(mask_of(CHOSEN["many"], None))
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    with torch.inference_mode():
        right = layer(x, chosen=chosen)
    found = layer(x, chosen=chosen)
    torch.testing.assert_close(found, right)
    found.sum().backward()


@both_ways
@pytest.mark.parametrize("dropout", [0.0, 1e-12])
def test_a_backward_under_autocast_is_no_other(dropout):
    layer, chosen = attention(SHAPES["plain"], dropout=dropout).float(), GlobalTokens.of(mask_of(CHOSEN["many"], None))
    x = torch.randn(3, LENGTH, WIDTH, requires_grad=True)
    out = layer(x, chosen=chosen).square().sum()
    (right,) = torch.autograd.grad(out, x, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(out, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, right, rtol=0.05, atol=0.05)


@both_ways
def test_the_same_input_gives_the_same_bits():
    layer, chosen = attention(SHAPES["per head"]).float(), GlobalTokens.of(mask_of(CHOSEN["many"], None))
    x = torch.randn(3, LENGTH, WIDTH, requires_grad=True)
    weight = torch.randn(3, LENGTH, WIDTH)
    runs = [torch.autograd.grad((layer(x, chosen=chosen) * weight).sum(), [x, *layer.parameters()]) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 5}, "window is 5; give an even number"),
        ({"window": 0}, "window is 0"),
        ({"window": 4, "dilation": (1, 2)}, "dilation has 2 steps; give one for each of 4 heads"),
        ({"window": 4, "dilation": 0}, "dilation is 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        LongformerAttention(WIDTH, HEADS, **settings)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width is 25; give a multiple of the 4 heads"):
        LongformerAttention(25, 4, window=4)
    with pytest.raises(ValueError, match="heads is 0"):
        LongformerAttention(24, 0, window=4)


def test_global_tokens_of_another_batch_are_refused():
    chosen = GlobalTokens.of(mask_of(CHOSEN["the first"], None))
    with pytest.raises(ValueError, match=r"chosen is of 3 rows of 37 tokens, but x is \[3, 36, 24\]"):
        attention(SHAPES["plain"])(torch.zeros(3, 36, WIDTH, dtype=torch.float64), chosen=chosen)


def test_global_tokens_on_another_device_are_refused():
    chosen = GlobalTokens.of(mask_of(CHOSEN["the first"], None))
    layer = LongformerAttention(WIDTH, HEADS, window=6).to("meta")
    with pytest.raises(ValueError, match=r"chosen is on cpu, but x is on meta; give GlobalTokens\.of\(mask\.to"):
        layer(torch.zeros(3, LENGTH, WIDTH, device="meta"), chosen=chosen)


@pytest.mark.gpu
@both_ways
@shapes
def test_a_gpu_computes_what_the_cpu_does(shape):
    within = torch.tensor(WITHIN["padded left"])
    mask, layer = mask_of(CHOSEN["another number in each"], within), attention(shape).float()
    x = torch.randn(3, LENGTH, WIDTH)
    right = layer(x, within=within.int(), chosen=GlobalTokens.of(mask))
    found = layer.cuda()(x.cuda(), within=within.int().cuda(), chosen=GlobalTokens.of(mask.cuda()))
    torch.testing.assert_close(found.cpu(), right, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@both_ways
@shapes
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_layer_never_waits_for_the_gpu(shape):
    within = torch.tensor(WITHIN["padded left"])
    chosen = GlobalTokens.of(mask_of(CHOSEN["another number in each"], within).cuda())
    layer, within = attention(shape).float().cuda(), within.int().cuda()
    x = torch.randn(3, LENGTH, WIDTH, device="cuda", requires_grad=True)
    layer(x, within=within, chosen=chosen).sum().backward()  # kernels are compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x, within=within, chosen=chosen).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
