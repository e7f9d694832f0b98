"""`ChunkedFeedForward`: chunks change no number, and bound what is wide."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import ChunkReformerFeedForward

from gossamer.nn.chunked_feed_forward import ACTIVATIONS, ChunkedFeedForward
from gossamer.nn.reversible import ReversibleLayers
from tests.nn.test_reversible import Hashed

WIDTH, HIDDEN = 12, 30


@pytest.mark.parametrize("chunk", [1, 4, 7, 11, 50])
def test_chunks_change_no_number(chunk: int) -> None:
    whole = ChunkedFeedForward(WIDTH, HIDDEN).double()
    parts = ChunkedFeedForward(WIDTH, HIDDEN, chunk=chunk).double()
    parts.load_state_dict(whole.state_dict())
    x = torch.randn(2, 11, WIDTH, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(parts(x), whole(x))
    for a, b in zip(
        *(torch.autograd.grad(module(x).sin().sum(), [x, *module.parameters()]) for module in (parts, whole)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_hugging_face_s(activation: str) -> None:
    ours = ChunkedFeedForward(WIDTH, HIDDEN, chunk=4, activation=activation)
    config = ReformerConfig(
        hidden_size=WIDTH, feed_forward_size=HIDDEN, hidden_act=activation, chunk_size_feed_forward=2
    )
    theirs = ChunkReformerFeedForward(config)
    for mine, other in (("layer_norm", "layer_norm"), ("inner", "dense.dense"), ("outer", "output.dense")):
        theirs.get_submodule(other).load_state_dict(ours.get_submodule(mine).state_dict())
    x = torch.randn(2, 10, WIDTH)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


class _Widest(TorchDispatchMode):
    """Notes how many positions the widest tensor of hidden features has."""

    positions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, torch.Tensor) and x.dim() > 1 and x.shape[-1] == HIDDEN and x.shape[0] != WIDTH:
                self.positions = max(self.positions, x.shape[:-1].numel())
        return out


@pytest.mark.parametrize(("chunk", "most"), [(0, 20), (4, 4)])
def test_reversible_layers_hold_one_chunk_of_hidden_features(chunk: int, most: int) -> None:
    model = ReversibleLayers([(Hashed(0.0), ChunkedFeedForward(WIDTH, HIDDEN, chunk=chunk)) for _ in range(2)])
    x = torch.randn(1, 20, WIDTH, requires_grad=True)
    with _Widest() as widest:
        model(x, x).y2.sum().backward()
    assert widest.positions == most


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": -1}, "chunk is -1; give an integer of at least 0"),
        ({"activation": "tanhh"}, "activation is 'tanhh'; give one of gelu, gelu_new"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ChunkedFeedForward: {message}"):
        ChunkedFeedForward(8, 8, **settings)
