"""`ReversibleLayers`: the gradients of stored activations, without the activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from gossamer.nn.chunked_feed_forward import ChunkedFeedForward
from gossamer.nn.reversible import ReversibleLayers

WIDTH, LENGTH = 12, 10
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


class Hashed(nn.Module):
    """Averages over tokens that hash alike, with dropout: a small stand-in for attention that draws buckets."""

    def __init__(self, dropout: float):
        super().__init__()
        self.norm, self.value, self.drop = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)

    def draw(self, x: Tensor) -> Tensor:
        directions = torch.randn(WIDTH, 2, dtype=x.dtype, device=x.device)
        return (self.norm(x) @ directions).argmax(-1)

    def forward(self, x: Tensor, *, within: Tensor | None = None, buckets: Tensor | None = None) -> Tensor:
        buckets = self.draw(x) if buckets is None else buckets
        alike = (buckets[:, :, None] == buckets[:, None, :]).to(x.dtype)
        return self.drop(alike @ self.value(self.norm(x)) / alike.sum(-1, keepdim=True))


class DrawnAnew(Hashed):
    """The fault: what the forward drew is not what the backward uses."""

    def forward(self, x: Tensor, *, within: Tensor | None = None, buckets: Tensor | None = None) -> Tensor:
        return super().forward(x, buckets=None if torch.is_grad_enabled() else buckets)


class OwnGenerator(nn.Module):
    """The fault: dropout from a generator that nobody winds back."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.generator = inner, torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(x.shape, generator=self.generator).to(x) < 0.8
        return self.inner(x) * kept


def layers(depth: int = 4, *, dropout: float = 0.2, chunk: int = 3, kind: type[Hashed] = Hashed) -> ReversibleLayers:
    torch.manual_seed(1)
    return ReversibleLayers(
        (kind(dropout), ChunkedFeedForward(WIDTH, 2 * WIDTH, chunk=chunk, dropout=dropout)) for _ in range(depth)
    )


def gradients(model: ReversibleLayers, x: Tensor, *, stored: bool, buckets: list | None = None) -> list[Tensor]:
    """The outputs, the input's gradient and the parameters', of a loss that both streams enter."""
    model.stored = stored
    x = x.detach().requires_grad_()
    torch.manual_seed(2)
    y1, y2, _ = model(x, x, buckets=buckets)
    found = torch.autograd.grad(y1.square().mean() + y2.sin().sum(), [x, *model.parameters()])
    return [y1.detach(), y2.detach(), *found]


def check_equals_stored(model: ReversibleLayers, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
    """Reversed and stored layers give the same outputs and gradients, relative to each one's size."""
    model = model.to(device, dtype)
    x = torch.randn(2, LENGTH, WIDTH, dtype=dtype).to(device)
    for found, wanted in zip(gradients(model, x, stored=False), gradients(model, x, stored=True), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=DTYPES[dtype] * (1 + wanted.abs().max().item()))


@every_device
@every_dtype
@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_stored_activations(depth: int, training: bool, dtype: torch.dtype, device: str) -> None:
    check_equals_stored(layers(depth).train(training), dtype, device)


@every_device
def test_buckets_drawn_anew_in_the_backward_are_found(device: str) -> None:
    with pytest.raises(AssertionError):
        check_equals_stored(layers(kind=DrawnAnew).eval(), device=device)


def test_other_dropout_in_the_backward_is_found() -> None:
    model = layers(dropout=0.0, chunk=0)
    for layer in model.layers:
        layer.feed_forward = OwnGenerator(layer.feed_forward)
    with pytest.raises(AssertionError):
        check_equals_stored(model)


@every_device
def test_generators_that_are_not_wound_back_are_found(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("gossamer.nn.reversible._Generators._set", lambda self: None)
    with pytest.raises(AssertionError):
        check_equals_stored(layers(), device=device)


@every_device
def test_the_backward_leaves_the_generators_where_they_stood(device: str) -> None:
    model = layers().to(device)
    y1, y2, _ = model(*torch.randn(2, 1, LENGTH, WIDTH, device=device))
    torch.manual_seed(5)
    wanted = torch.rand(3), torch.rand(3, device=device)
    torch.manual_seed(5)
    (y1 + y2).sum().backward()
    assert all(map(torch.equal, (torch.rand(3), torch.rand(3, device=device)), wanted))


def test_parameters_that_layers_share_sum_up() -> None:
    attention, feed_forward = Hashed(0.2), ChunkedFeedForward(WIDTH, 20, dropout=0.2)
    other = ChunkedFeedForward(WIDTH, 20, chunk=4)
    other.inner = feed_forward.inner
    feed_forward.layer_norm = attention.norm  # within one layer, too
    check_equals_stored(ReversibleLayers([(attention, feed_forward), (attention, other), (Hashed(0.0), feed_forward)]))


def test_frozen_parameters_and_parts_get_no_gradient() -> None:
    model = layers(3).double()
    for parameter in [*model.layers[0].parameters(), *model.layers[2].attention.parameters()]:
        parameter.requires_grad_(False)
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    found = []
    for model.stored in (False, True):
        torch.manual_seed(3)
        y1, y2, _ = model(x, x)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found.append(torch.autograd.grad((y1 * y2).sum(), trained))
    assert len(found[0]) < len(list(model.parameters()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_only_one_stream_may_enter_the_loss() -> None:
    model = layers(2).double().eval()
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    for stream in (0, 1):
        found = []
        for model.stored in (False, True):
            torch.manual_seed(3)
            found.append(torch.autograd.grad(model(x, x)[stream].sum(), x)[0])
        torch.testing.assert_close(*found)


def test_a_graph_that_is_kept_gives_its_gradients_again() -> None:
    model = layers(3).double()
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    loss = model(x, x).y2.sin().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_backwards_of_two_forwards_may_mix() -> None:
    model = layers(3).double().eval()
    xs = torch.randn(2, 1, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    drawn = model(xs[0], xs[0]).buckets
    losses = [model(x, x, buckets=drawn).y1.sin().sum() for x in xs]
    together = torch.autograd.grad(losses[0] + losses[1], xs, retain_graph=True)[0]
    torch.testing.assert_close(together, sum(torch.autograd.grad(loss, xs, retain_graph=True)[0] for loss in losses))


def test_the_buckets_of_a_forward_can_be_handed_to_another() -> None:
    model, x = layers().eval(), torch.randn(1, LENGTH, WIDTH)
    torch.manual_seed(3)
    y1, y2, drawn = model(x, x)
    torch.manual_seed(4)
    assert not torch.equal(model(x, x).y2, y2)
    again = model(x, x, buckets=drawn)
    assert torch.equal(again.y1, y1) and torch.equal(again.y2, y2)
    assert all(map(torch.equal, again.buckets, drawn))


def test_buckets_are_one_entry_a_layer() -> None:
    with pytest.raises(ValueError, match="buckets has 3 entries for 4 layers; give one a layer"):
        layers()(*torch.randn(2, 1, LENGTH, WIDTH), buckets=[None] * 3)


def test_gradients_of_gradients_are_refused() -> None:
    x = torch.randn(1, LENGTH, WIDTH, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradients of gradients; leave create_graph out, or set stored=True"):
        torch.autograd.grad(layers(2)(x, x).y1.sum(), x, create_graph=True)


@every_device
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_autocast_loses_no_gradient(inside: bool, device: str) -> None:
    """Weights cast where no gradient is taken stay out of the way of those who take one: the layers again, and a head
    that shares a weight with them."""

    def run(stored: bool) -> list[Tensor]:
        model = layers(3).to(device)
        model.stored = stored
        shared = model.layers[0].attention.value
        x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
        torch.manual_seed(3)
        with torch.autocast(device, torch.bfloat16):
            y1, y2, _ = model(x, x)
            loss = shared(y1).float().sin().sum() + y2.float().square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return [x.grad, *(parameter.grad for parameter in model.parameters())]

    for found, wanted in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * (1 + wanted.abs().max().item()))


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward, each tensor's storage once; parameters do not count."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(kept.values())


def test_what_is_kept_does_not_grow_with_the_depth() -> None:
    pair = 2 * LENGTH * WIDTH * 4
    for stored in (False, True):
        kept = {}
        for depth in (2, 8, 24):
            model = layers(depth)
            model.stored = stored
            x = torch.randn(1, LENGTH, WIDTH, requires_grad=True)
            kept[depth] = saved_bytes(lambda model=model, x=x: sum(model(x, x)[:2]).sum())
        if stored:
            assert kept[24] > 2.5 * kept[8] > 6 * kept[2]
        else:
            assert len(set(kept.values())) == 1 and kept[2] == pair


def test_hooks_of_parameters_run_as_soon_as_their_layer_is_done() -> None:
    model, seen = layers(3), []
    for number, layer in enumerate(model.layers):
        layer.attention.value.weight.register_post_accumulate_grad_hook(lambda _, number=number: seen.append(number))
    x = torch.randn(1, LENGTH, WIDTH)
    model(x, x).y1.sum().backward()
    assert seen == [2, 1, 0]


def test_distributed_data_parallel_hears_of_every_gradient(tmp_path: Path) -> None:
    """Of two steps in turn: it refuses the second where it has not heard of all gradients of the first."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = layers(2).double().eval()
        parallel, x = nn.parallel.DistributedDataParallel(model), torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
        drawn = model(x, x).buckets
        wanted = torch.autograd.grad(model(x, x, buckets=drawn).y2.sin().sum(), list(model.parameters()))
        for _ in range(2):
            model.zero_grad()
            parallel(x, x, buckets=drawn).y2.sin().sum().backward()
        for parameter, gradient in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    finally:
        distributed.destroy_process_group()


# torch.compile looks at the input of a layer, which is no leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_layers_have_the_same_gradients() -> None:
    model, x = layers(2).double(), torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    compiled, found = torch.compile(model, backend="aot_eager"), []
    for forward in (model, compiled):
        torch.manual_seed(3)
        found.append(torch.autograd.grad(forward(x, x).y1.sin().sum(), list(model.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    torch.compiler.reset()  # what was compiled here counts against a limit that other tests share
