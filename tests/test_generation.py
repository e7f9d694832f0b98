import math

import pytest
import torch

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.generation import choose, generate, stream
from gossamer.generation_config import SamplingConfig
from gossamer.models.gpt2 import GPT2
from gossamer.nn.cache import KVCache

SMALL = {"vocab_size": 97, "context_size": 64, "n_layer": 2, "n_head": 3, "n_embed": 48}
SPARSE = SparseAttentionConfig(local_heads=2, global_heads=1, window_size=8, min_window_size=4)
BOTH = {
    "dense": GPT2Config(**SMALL),
    "sparse": GPT2Config(**SMALL, use_sparse_attention=True, sparse_config=SPARSE),
}


@pytest.fixture(params=BOTH.values(), ids=BOTH.keys())
def model(request):
    """Weights ten times GPT-2's, so that every token depends on what the attention saw."""
    torch.manual_seed(0)
    model = GPT2(request.param)
    for parameter in model.parameters():
        parameter.data *= 10
    return model


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return GPT2(BOTH["dense"])


def prompt(batch=2, length=9):
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 1},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.95, "seed": 2},
    ],
    ids=["greedy", "sampled", "filtered"],
)
@pytest.mark.parametrize("capacity", [None, 40])
def test_cached_equals_uncached_token_for_token(model, sampling, capacity):
    cached, uncached = (
        generate(model, prompt(), max_new_tokens=31, capacity=capacity, use_cache=use, **sampling)
        for use in (True, False)
    )
    assert torch.equal(cached, uncached)
    assert cached.shape == (2, 40)
    assert len(cached[0, 9:].unique()) > 3, "a text that repeats one token shows little"


def test_cached_logits_equal_uncached_ones_all_the_way(model):
    model.double().eval()
    tokens = prompt(2, 64)
    cache = KVCache(64)
    with torch.inference_mode():
        whole = model(tokens, planned_length=64).logits
        for step in range(64):
            logits = model(tokens[:, step : step + 1], cache=cache).logits[:, 0]
            torch.testing.assert_close(logits, whole[:, step])
            shorter = model(tokens[:, : step + 1], planned_length=64).logits[:, -1]
            torch.testing.assert_close(logits, shorter)


def test_greedy_takes_the_likeliest_token_each_time(model):
    model.eval()
    tokens = prompt()
    for _ in range(5):
        tokens = torch.cat([tokens, model(tokens, planned_length=64).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, prompt(), max_new_tokens=5, temperature=0), tokens)


def test_a_seed_decides_the_text_and_the_global_generator_is_left_alone(model):
    state = torch.get_rng_state()
    first, again, other = (generate(model, prompt(), max_new_tokens=20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_texts_differ(dense):
    assert not torch.equal(*(generate(dense, prompt(), max_new_tokens=30) for _ in range(2)))


def test_the_prompt_comes_first_and_nothing_is_added_for_zero_tokens(dense):
    assert torch.equal(generate(dense, prompt(), max_new_tokens=0), prompt())
    assert torch.equal(generate(dense, prompt(), max_new_tokens=3)[:, :9], prompt())


def test_a_text_ends_with_its_stop_token_and_waits_for_the_others(dense):
    free = generate(dense, prompt(), max_new_tokens=40, seed=0)[:, 9:]
    early, late = free.tolist()
    stop = (early[6], next(token for at, token in enumerate(late) if at > 8 and token not in late[:at]))
    stopped = generate(dense, prompt(), max_new_tokens=40, seed=0, stop=stop)[:, 9:]
    ends = [next(i for i, token in enumerate(row.tolist()) if token in stop) for row in free]
    assert ends[0] != ends[1], "only a text that waits shows what it does meanwhile"
    assert stopped.shape[1] == max(ends) + 1 < 40
    for row, end, whole in zip(stopped, ends, free, strict=True):
        assert torch.equal(row[: end + 1], whole[: end + 1])
        assert (row[end:] == whole[end]).all()


def test_the_stream_is_the_text(dense):
    sampling = SamplingConfig(max_new_tokens=12, seed=5)
    columns = list(stream(dense, prompt(), sampling))
    assert [column.shape for column in columns] == [(2,)] * 12
    assert all(column.is_inference() for column in columns)
    assert torch.equal(torch.stack(columns, dim=1), generate(dense, prompt(), max_new_tokens=12, seed=5)[:, 9:])


def test_modes_are_restored_module_by_module_even_if_the_stream_is_abandoned(dense):
    dense.train()
    dense.h[1].eval()
    modes = [module.training for module in dense.modules()]
    tokens = stream(dense, prompt(), SamplingConfig(max_new_tokens=5))
    next(tokens)
    assert not any(module.training for module in dense.modules())
    assert not torch.is_inference_mode_enabled(), "the caller's own tensors must stay normal between tokens"
    tokens.close()
    assert [module.training for module in dense.modules()] == modes
    generate(dense, prompt(), max_new_tokens=2)
    assert [module.training for module in dense.modules()] == modes


def test_dropout_is_off_and_training_goes_on_afterwards():
    model = GPT2(GPT2Config(**SMALL, dropout=0.5))
    assert torch.equal(*(generate(model, prompt(), max_new_tokens=20, seed=0) for _ in range(2)))
    model(prompt(), prompt()).loss.backward()
    assert model.wte.weight.grad.any()


def test_padding_tokens_are_never_drawn():
    model = GPT2(GPT2Config(**{**SMALL, "vocab_size": 1000}, unpadded_vocab_size=5))
    text = generate(model, prompt().clamp(max=4), max_new_tokens=50, temperature=50.0, seed=0)
    assert text.max() < 5


def test_the_cache_follows_the_dtype_that_autocast_gives(dense):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached, uncached = (
            generate(dense, prompt(), max_new_tokens=20, temperature=0, use_cache=use) for use in (True, False)
        )
    assert cached.shape == uncached.shape
    assert generate(dense.bfloat16(), prompt(), max_new_tokens=20).shape == (2, 29)


LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.25, 0.05]]).log()


def drawn(**sampling):
    generator = torch.Generator().manual_seed(0)
    return choose(LOGITS.expand(4000, -1), SamplingConfig(**sampling), generator).bincount(minlength=5) / 4000


def test_plain_sampling_follows_the_distribution():
    assert torch.allclose(drawn(), LOGITS.exp()[0], atol=0.03)


def test_temperature_sharpens_and_flattens():
    assert torch.allclose(drawn(temperature=0.5), (2 * LOGITS).softmax(-1)[0], atol=0.03)
    assert torch.allclose(drawn(temperature=1000.0), torch.full((5,), 0.2), atol=0.03)
    assert drawn(temperature=1e-6).tolist() == drawn(temperature=0).tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.7}, [1, 2, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 3, "top_p": 0.75}, [1, 3]),  # of 0.85 that are left, 0.65 is 76 %
    ],
)
def test_filters_keep_exactly_the_likeliest(filters, kept):
    assert drawn(**filters).nonzero().flatten().tolist() == kept


def test_equal_logits_do_not_let_more_than_top_k_through():
    chosen = choose(torch.zeros(1000, 50), SamplingConfig(top_k=4), torch.Generator().manual_seed(0))
    assert len(chosen.unique()) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", -1),
        ("max_new_tokens", 2.5),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e-40),
        ("top_k", 0),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", 2**64),
        ("stop", "end"),
        ("stop", 7),
        ("stop", (1.5,)),
        ("stop", (-1,)),
    ],
)
def test_arguments_out_of_range_are_refused_by_name_and_value(name, value):
    shown = value[0] if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=f"generate: {name} is {shown!r}"):
        SamplingConfig(**{name: value})


@pytest.mark.parametrize(
    ("tokens", "changes", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), {}, r"at least one token"),
        (torch.zeros(0, 4, dtype=torch.int64), {}, r"at least one token"),
        (torch.tensor([[3, 97]]), {}, r"tokens holds 97, but the model knows the ids 0 to 96"),
        (torch.tensor([[-1, 3]]), {}, r"tokens holds -1"),
        (prompt(), {"stop": (97,)}, r"stop holds 97"),
        (prompt(), {"max_new_tokens": 56}, r"max_new_tokens is 56, but 64 fit; give max_new_tokens=55"),
        (prompt(), {"max_new_tokens": 4, "capacity": 12}, r"but 12 fit; give max_new_tokens=3"),
        (prompt(1, 70), {}, r"tokens has 70 tokens.*keep the last 63"),
        (prompt(), {"capacity": 65}, r"capacity is 65, beyond the model's context_size=64"),
        (prompt(), {"capacity": 0}, r"capacity is 0"),
        (prompt(), {"temperature": -1}, r"temperature is -1"),
    ],
)
def test_calls_that_cannot_work_are_refused_before_anything_runs(dense, tokens, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(dense, tokens, **{"max_new_tokens": 1, **changes})


def test_errors_come_from_the_call_not_from_the_first_token(dense):
    with pytest.raises(ValueError, match="tokens holds 97"):
        stream(dense, torch.tensor([[97]]), SamplingConfig(max_new_tokens=1))


def test_a_model_full_of_nan_says_so(dense):
    dense.ln_f.weight.data[:] = math.nan
    with pytest.raises(ValueError, match="logits are NaN"):
        generate(dense, prompt(), max_new_tokens=1)


@pytest.mark.gpu
def test_a_gpu_writes_the_same_text_with_and_without_a_cache(model):
    model.double().cuda()
    cached, uncached, other = (
        generate(model, prompt().cuda(), max_new_tokens=31, seed=seed, use_cache=use, stop=(96,))
        for seed, use in ((1, True), (1, False), (2, True))
    )
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, other)


@pytest.mark.gpu
def test_a_prompt_on_another_device_than_the_model_is_refused(dense):
    with pytest.raises(ValueError, match=r"tokens are on cpu, the model on cuda:0; pass tokens\.to\('cuda:0'\)"):
        generate(dense.cuda(), prompt(), max_new_tokens=1)


def test_prompts_of_different_lengths_are_each_written_on_as_alone(model):
    """The padding is a token like any other: it may not matter which."""
    model.eval()
    long, short = prompt()[0].tolist(), prompt()[0, 4:].tolist()
    for filler in (0, 5):
        tokens = torch.tensor([long, [filler] * 4 + short])
        sampling = SamplingConfig(20, temperature=0)
        together = torch.stack(list(stream(model, tokens, sampling, padding=[0, 4])), dim=1)
        for text, new in zip((long, short), together, strict=True):
            alone = generate(model, torch.tensor([text]), max_new_tokens=20, temperature=0)
            assert new.tolist() == alone[0, len(text) :].tolist()


@pytest.mark.parametrize(
    ("padding", "use_cache", "message"),
    [
        ([1], True, "one|a number"),
        ([9, 0], True, "0 to 8"),
        ([-1, 0], True, "0 to 8"),
        ([1, 0], False, "need the cache"),
    ],
)
def test_padding_that_makes_no_sense_is_refused(dense, padding, use_cache, message):
    with pytest.raises(ValueError, match=message):
        stream(dense, prompt(2), SamplingConfig(1), padding=padding, use_cache=use_cache)


def test_texts_without_end_are_refused_where_positions_end(dense):
    with pytest.raises(ValueError, match="max_new_tokens is None, but the model has 64 positions"):
        stream(dense, prompt(), SamplingConfig(None))
