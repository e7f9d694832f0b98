"""Text from a sparse model, token by token: what `generate` writes, from prompts of any lengths, in any chunks."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gossamer import Pattern, PerHead, Sinks, Strided, Tokens, Window, densify, sparsify
from gossamer.generation_config import SamplingConfig
from gossamer.integrations.huggingface import evicting_cache, stream
from gossamer.integrations.huggingface.decode_step import DecodeStep
from gossamer.integrations.huggingface.layers import cache_name
from gossamer.nn.kept_keys import Clocks
from gossamer.nn.layer_cache import LayerCache

VOCABULARY = 97
PATTERNS = {
    "bounded": Window(9) | Sinks(2) | Tokens([40]),
    "strided": Window(9) | Strided(7),
    "a pattern a head": PerHead([(Window(6), 2), (Strided(5), 2)]),
}


def llama(pattern: Pattern) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return sparsify(model, pattern)


def prompts(*lengths: int) -> list[list[int]]:
    return [torch.randint(2, VOCABULARY, (length,)).tolist() for length in lengths]


def written(
    model: PreTrainedModel, texts: list[list[int]], new: int, chunk: int = 4096, **settings: object
) -> torch.Tensor:
    sampling = SamplingConfig(new, **{"temperature": 0, **settings})
    return torch.stack(list(stream(model, texts, sampling, chunk=chunk)), dim=1)


@pytest.mark.parametrize("chunk", [1, 16, 4096])
@pytest.mark.parametrize("name", PATTERNS)
def test_each_text_is_the_one_that_generate_writes_alone(name: str, chunk: int) -> None:
    model, texts = llama(PATTERNS[name]), prompts(60, 33, 1)
    together = written(model, texts, new=40, chunk=chunk)
    for text, new in zip(texts, together, strict=True):
        alone = model.generate(torch.tensor([text]), max_new_tokens=40, do_sample=False)
        assert new.tolist() == alone[0, len(text) :].tolist()
    assert len(together.unique()) > 20, "texts that repeat one token show little"


def test_a_text_goes_on_past_the_positions_that_the_model_was_trained_at() -> None:
    model = llama(PATTERNS["bounded"])
    forever = stream(model, prompts(5), SamplingConfig(None, temperature=0))
    assert len(list(itertools.islice(forever, 200))) == 200


def test_a_seed_decides_the_text() -> None:
    model, texts = llama(PATTERNS["bounded"]), prompts(8, 3)
    first, again, other = (written(model, texts, new=20, temperature=1.0, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_text_ends_with_its_stop_token_and_the_model_is_left_as_it_was() -> None:
    model, texts = llama(PATTERNS["bounded"]).train(), prompts(8)
    free = written(model, texts, new=30)[0].tolist()
    stop = free[10]
    ended = written(model, texts, new=30, stop=(stop,))[0].tolist()
    assert ended == free[: free.index(stop) + 1]
    assert model.training


def test_steps_are_the_model_s_own_logits() -> None:
    model = llama(PATTERNS["bounded"])
    tokens, patterns = torch.randint(2, VOCABULARY, (2, 60)), PATTERNS["bounded"]
    with torch.inference_mode():
        whole = model(tokens, use_cache=False).logits
        cache = model(tokens[:, :20], use_cache=True)[cache_name(model)]
        step = DecodeStep(model, cache, torch.zeros(2, dtype=torch.int64))
        for position in range(20, 60):
            torch.testing.assert_close(step(tokens[:, position]), whole[:, position], atol=1e-4, rtol=1e-4)
    assert cache.layers[0].held.held == 9 + 2 + 1, patterns


def test_a_cache_whose_device_counts_gives_the_same() -> None:
    """What a CUDA graph repeats, without the graph."""
    from gossamer import Causal, attend

    pattern, x = Causal() & (Window(8) | Sinks(2)), torch.randn(2, 2, 60, 8)
    (layer,) = evicting_cache([pattern]).layers
    cache = layer.held
    cache.attend(*(x[:, :, :20],) * 3)
    assert cache.repeats()
    clocks, out = Clocks(), []
    cache.follow(clocks)
    for at in range(20, 40):
        out.append(cache.attend(*(x[:, :, at : at + 1],) * 3))
        clocks.advance()
    cache.follow(None)
    out += [cache.attend(*(x[:, :, at : at + 1],) * 3) for at in range(40, 60)]
    torch.testing.assert_close(torch.cat(out, dim=2), attend(x, x, x, pattern)[:, :, 20:])


def test_a_step_that_was_counted_and_did_not_run_is_counted_back() -> None:
    from gossamer import Causal, attend

    pattern, x = Causal() & (Window(8) | Sinks(2)), torch.randn(1, 2, 40, 8)
    cache, clocks = LayerCache(pattern), Clocks()
    cache.attend(*(x[:, :, :20],) * 3)
    cache.follow(clocks)
    counts = cache.counts()
    cache.repeated()
    assert cache.seen == 21
    cache.count_back(counts)
    cache.follow(None)
    out = [cache.attend(*(x[:, :, at : at + 1],) * 3) for at in range(20, 40)]
    torch.testing.assert_close(torch.cat(out, dim=2), attend(x, x, x, pattern)[:, :, 20:])


def test_compiled_layers_write_the_same_and_are_compiled_once() -> None:
    model, texts = llama(PATTERNS["bounded"]), prompts(20)
    plain = written(model, texts, new=40)
    compiled: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    torch._dynamo.reset()
    for layer in model.model.layers:
        layer.compile(backend=counting)
    steps = stream(model, texts, SamplingConfig(40, temperature=0))
    first = [next(steps) for _ in range(3)]
    count = len(compiled)
    assert torch.equal(torch.stack([*first, *steps], dim=1), plain)
    assert len(compiled) == count > 0, "each token was compiled anew"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "prompts is empty"),
        ([[3], []], "prompt 1 is empty"),
        ([[3, VOCABULARY]], f"prompt 0 holds {VOCABULARY}, but the model knows the ids 0 to {VOCABULARY - 1}"),
        ([[-1]], "prompt 0 holds -1"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(texts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(llama(PATTERNS["bounded"]), texts, SamplingConfig(1))


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ValueError, match="model is dense"):
        stream(densify(llama(PATTERNS["bounded"])), prompts(3), SamplingConfig(1))


def test_learned_positions_end() -> None:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = sparsify(GPT2LMHeadModel(config), Window(4))
    assert len(list(stream(model, prompts(20), SamplingConfig(12)))) == 12
    with pytest.raises(ValueError, match=r"up to 20 tokens and max_new_tokens is 13, but .* 32 positions"):
        stream(model, prompts(20), SamplingConfig(13))
    with pytest.raises(ValueError, match="has a table of 32 positions: its texts end"):
        stream(model, prompts(20), SamplingConfig(None))


def test_damaged_weights_are_named() -> None:
    model = llama(PATTERNS["bounded"])
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="logits are NaN"):
        list(stream(model, prompts(3), SamplingConfig(1)))
