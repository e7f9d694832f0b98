"""Evicting caches on a GPU: what `attend` gives over the whole, and steps that a CUDA graph repeats."""

from __future__ import annotations

import pytest
import torch
import transformers

from gossamer import Causal, Dilated, Pattern, PerHead, Sinks, Strided, Tokens, Window, attend, sparsify
from gossamer.generation_config import SamplingConfig
from gossamer.integrations.huggingface import stream
from gossamer.integrations.huggingface.decode_step import EAGER_STEPS, DecodeStep
from gossamer.integrations.huggingface.layers import cache_name
from gossamer.nn.layer_cache import LayerCache

pytestmark = pytest.mark.gpu

PATTERNS: dict[str, Pattern] = {
    "window and sinks": Causal() & (Window(256) | Sinks(5)),
    "strided": Causal() & Strided(10),
    "causal": Causal(),
    "dilated": Causal() & Dilated(64, 4),
    "dilated and sinks": Causal() & (Dilated(64, 4) | Sinks(4)),
    "tokens": Causal() & (Window(64) | Tokens([3, 500, 900])),
    "a pattern a head": PerHead([(Causal() & Window(100), 4), (Causal() & Strided(10), 4)]),
}
PIECES = (700, 1, 1, 5, 200, *[1] * 100, 93)


@pytest.mark.parametrize("padding", [None, [7, 0]], ids=["whole", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_pieces_equal_the_whole(name: str, dtype: torch.dtype, padding: list[int] | None) -> None:
    """Errors against float64 are at most twice those of one call over the whole sequence."""
    pattern, length = PATTERNS[name], sum(PIECES)
    q, k, v = (torch.randn(2, heads, length, 64, device="cuda", dtype=dtype) for heads in (8, 4, 4))
    cache = LayerCache(pattern, padding=padding)
    split = zip(*(x.split(PIECES, dim=2) for x in (q, k, v)), strict=True)
    out = torch.cat([cache.attend(*piece) for piece in split], dim=2)
    for row in range(2):
        some = padding[row] if padding else 0
        given = [x[row : row + 1, :, some:] for x in (q, k, v)]
        exact = attend(*(x.double() for x in given), pattern)
        allowed = (attend(*given, pattern) - exact).abs().max() + torch.finfo(dtype).eps
        assert (out[row : row + 1, :, some:] - exact).abs().max() <= 2 * allowed


def llama() -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=128, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).cuda().eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


REPEATING = Window(64) | Sinks(4) | Tokens([150, 400])


def test_a_step_is_recorded_and_its_logits_are_those_of_the_model() -> None:
    """Also across the step at which a chosen key moves to the archive, where the graph is given up and made anew."""
    model = sparsify(llama(), REPEATING)
    tokens = torch.randint(2, 97, (2, 700), device="cuda")
    padding = torch.zeros(2, dtype=torch.int64, device="cuda")
    with torch.inference_mode():
        whole = model(tokens, use_cache=False).logits
        cache = model(tokens[:, :300], use_cache=True)[cache_name(model)]
        step, recorded = DecodeStep(model, cache, padding), []
        for position in range(300, 700):
            logits = step(tokens[:, position])
            recorded.append(step.recorded is not None)
            torch.testing.assert_close(logits, whole[:, position], atol=1e-3, rtol=1e-3)
    archived = 400 + 64 - 300  # the step that drops position 400 from the ring
    assert sum(recorded) == len(recorded) - 2 * EAGER_STEPS - 1
    assert not recorded[archived] and recorded[archived - 1] and recorded[-1]


def test_a_model_that_no_graph_can_repeat_says_so_and_writes_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """It asks the device for a number in each layer: the half-made graph must leave nothing behind."""
    model, prompt = sparsify(llama(), Window(64) | Sinks(4)), torch.randint(2, 97, (100,)).tolist()
    sampling = SamplingConfig(60, temperature=0)
    graphed = torch.stack(list(stream(model, [prompt], sampling)))
    assert not caplog.records
    model.model.layers[1].register_forward_hook(lambda module, given, out: print(out[0].sum().item()))
    assert torch.equal(torch.stack(list(stream(model, [prompt], sampling))), graphed)
    assert "cannot be a CUDA graph" in caplog.text


@pytest.mark.parametrize(
    "pattern",
    [REPEATING, Window(64) | Strided(16), PerHead([(Window(40), 2), (Strided(8), 2)])],
    ids=["bounded", "strided", "a pattern a head"],
)
def test_greedy_texts_of_different_lengths_are_those_of_generate(pattern: Pattern) -> None:
    model = sparsify(llama(), pattern)
    prompts = [torch.randint(2, 97, (length,)).tolist() for length in (300, 133)]
    together = torch.stack(list(stream(model, prompts, SamplingConfig(300, temperature=0), chunk=64)), dim=1)
    for prompt, text in zip(prompts, together, strict=True):
        given = torch.tensor([prompt], device="cuda")
        (alone,) = model.generate(given, max_new_tokens=300, do_sample=False)[:, len(prompt) :]
        assert torch.equal(text, alone)


def test_a_sparse_model_trains_on_the_fast_kernels() -> None:
    """The gradients in bfloat16 are as near to those in float64 as the dense masked formula's."""
    model = sparsify(llama(), Window(64) | Sinks(4))
    tokens = torch.randint(2, 97, (2, 512), device="cuda")

    def gradients() -> torch.Tensor:
        model.zero_grad()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])

    with torch.autocast("cuda", torch.bfloat16):
        rounded = gradients()
    exact = gradients()
    assert (rounded - exact).norm() <= 0.05 * exact.norm()
