"""What cannot be is refused: before anything changed, with the name, the value and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from gossamer import Causal, PerHead, Strided, Window, densify, resparsify, sparsify
from gossamer.integrations.huggingface import evicting_cache, is_sparse
from gossamer.integrations.huggingface.layers import Unswitchable, cache_name
from tests.integrations.huggingface.families import LENGTH, SIZES, SPARSE, WIDE, left_padded, tiny, tokens

LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
}  # fmt: skip
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SEQUENCES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 97}

STRANGERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an encoder": ("BertModel", {"vocab_size": 97} | SMALL, "no causal self-attention"),
    "an encoder and a decoder": ("T5ForConditionalGeneration", SEQUENCES, "attends to an encoder"),
    "layers without attention": ("Qwen3NextForCausalLM", WIDE | LINEAR, "AttentionInterface|linear_attention"),
    "layers that see chunks": ("Llama4ForCausalLM", WIDE | {"num_local_experts": 2, "intermediate_size_mlp": 48},
                               "chunked_attention"),
    "the future": ("Gemma3ForCausalLM", WIDE | {"use_bidirectional_attention": True}, "see the future"),
}  # fmt: skip
CONFIGURATIONS = {"Gemma3ForCausalLM": "Gemma3TextConfig", "Llama4ForCausalLM": "Llama4TextConfig"}


def built(name: str, sizes: dict[str, Any]) -> PreTrainedModel:
    family = name.removesuffix("Model").removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    config = getattr(transformers, CONFIGURATIONS.get(name, f"{family}Config"))
    return getattr(transformers, name)(config(**sizes)).eval()


@pytest.mark.parametrize(("name", "sizes", "message"), STRANGERS.values(), ids=STRANGERS)
def test_models_that_cannot_be_switched_are_refused(name: str, sizes: dict[str, Any], message: str) -> None:
    model = built(name, sizes)
    before = model.config.to_dict()
    with pytest.raises(Unswitchable, match=message):
        sparsify(model, Window(4))
    assert model.config.to_dict() == before


class OfItsOwn(transformers.LlamaForCausalLM):
    """A model whose authors do not promise that it calls attention through the interface."""

    _supports_attention_backend = False


def test_a_model_with_attention_of_its_own_is_refused() -> None:
    with pytest.raises(Unswitchable, match="OfItsOwn does not call attention through transformers' AttentionInterface"):
        sparsify(OfItsOwn(transformers.LlamaConfig(**WIDE)), Window(4))


def vision_and_text() -> PreTrainedModel:
    text = {"vocab_size": 97, "num_key_value_heads": 2} | SMALL
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
    ids = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
    config = transformers.Qwen2VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **ids)
    return transformers.Qwen2VLForConditionalGeneration(config).eval()


@torch.no_grad()
def test_of_a_model_of_pictures_and_text_the_text_is_switched() -> None:
    """Its positions are of three or four kinds, which are not taken for packed sequences."""
    model, ids = vision_and_text(), tokens(1, 40).clamp(min=7)
    with pytest.raises(Unswitchable, match=r"sparsify\(model\.language_model\)"):
        sparsify(model, Window(4))
    right = model(ids).logits
    sparsify(model.model.language_model, Causal())
    assert (model(ids).logits - right).abs().max() < 1e-5
    sparsify(model.model.language_model, Window(4))
    assert (model(ids).logits - right).abs().max() > 1e-3
    settings = {"max_new_tokens": 4, "do_sample": False}
    evicting = model.generate(ids, **settings)
    assert torch.equal(evicting, model.generate(ids, use_cache=False, **settings))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (PerHead([(Window(5), 3)]), "3"),
        ({3: Window(5)}, "layer 3; the model has layers 0 to 2"),
        ({-1: Window(5)}, "layer -1; the model has layers 0 to 2"),
        ({0: 5}, "pattern of layer 0 is 5"),
        (lambda layer: None if layer == 1 else Window(5), "pattern of layer 1 is None"),
        ([Window(5)] * 3, "give one such as Window"),
        ("Window(5)", "give one such as Window"),
    ],
)
def test_patterns_that_do_not_suit_the_model_are_refused(pattern: Any, message: str) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match=message):
        sparsify(model, pattern)
    assert not is_sparse(model)
    assert not hasattr(model.config, "sparse_attention")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(Unswitchable, match="model is a Linear"):
        sparsify(torch.nn.Linear(2, 2), Window(4))


@pytest.mark.parametrize(
    ("saved", "message"),
    [(None, "not the patterns of a sparse model"), ({"patterns": 5}, "not the patterns"),
     ({"patterns": ["Window(size=4)"]}, "patterns for 1 layers, but the model has 3"),
     ({"patterns": ["import os"] * 3}, "import os")],
)  # fmt: skip
def test_a_configuration_without_patterns_is_refused(saved: object, message: str) -> None:
    model = tiny("llama")
    model.config.sparse_attention = saved
    with pytest.raises(ValueError, match=message):
        resparsify(model)
    assert not is_sparse(model)


def test_a_dense_model_cannot_be_made_dense() -> None:
    with pytest.raises(ValueError, match="nothing to undo"):
        densify(tiny("llama"))


@pytest.fixture(scope="module")
def sparse() -> PreTrainedModel:
    return sparsify(tiny("gemma3"), SPARSE)


IDS = tokens(2, LENGTH)
ONES = torch.ones(2, LENGTH, dtype=torch.long)


def zeros_at(*places: int) -> Tensor:
    mask = ONES.clone()
    mask[0, list(places)] = 0
    return mask


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_mask": torch.zeros(2, 1, LENGTH, LENGTH)}, r"give \[batch, tokens\] of 1"),
        ({"attention_mask": zeros_at(30)}, "zeros within sequence 0"),
        ({"attention_mask": zeros_at(0, 30)}, "zeros within sequence 0"),
        ({"attention_mask": zeros_at(LENGTH - 1), "use_cache": True}, "zeros behind sequence 0"),
        ({"attention_mask": ONES[:, :30]}, "is of 30 tokens, but there are 60"),
        ({"attention_mask": torch.ones(2, 90)}, "is of 90 tokens, but there are 60"),
        ({"output_attentions": True}, "makes no matrix of weights"),
    ],
    ids=["4-D", "hole", "two holes", "behind", "short", "long", "weights"],
)
def test_arguments_that_a_pattern_does_not_go_with_are_refused(
    sparse: PreTrainedModel, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sparse(IDS, **given)


@pytest.mark.parametrize("evict", [True, False])
def test_packed_sequences_have_no_cache(evict: bool) -> None:
    model = sparsify(tiny("llama"), SPARSE, evict=evict)
    positions = torch.cat([torch.arange(20), torch.arange(LENGTH - 20)])[None]
    with pytest.raises(ValueError, match="packed sequences have no cache"):
        model(IDS[:1], position_ids=positions, **{cache_name(model): DynamicCache()})


def test_packed_sequences_are_not_compiled_silently() -> None:
    """A graph cannot ask where they begin; it would take them for one."""
    torch.compiler.reset()
    model = torch.compile(sparsify(tiny("llama"), SPARSE), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="position_ids without an attention_mask may mean packed"):
        model(IDS, position_ids=torch.arange(LENGTH)[None])


def filled(model: PreTrainedModel, **given: Tensor) -> dict[str, Any]:
    """The cache behind a few tokens, as an argument."""
    name = cache_name(model)
    return {name: getattr(model(**(given or {"input_ids": IDS})), name)}


@torch.no_grad()
def test_a_cache_of_other_patterns_is_refused() -> None:
    model = sparsify(tiny("llama"), Window(9))
    cache = filled(model)
    with pytest.raises(ValueError, match="other patterns"):
        sparsify(model, Window(20))(IDS[:, :1], **cache)
    with pytest.raises(ValueError, match="other patterns"):
        model(IDS, **{cache_name(model): evicting_cache([Window(20)] * 3)})


@torch.no_grad()
@pytest.mark.parametrize("back", [densify, lambda model: model.set_attn_implementation("eager")], ids=["undone", "set"])
@pytest.mark.filterwarnings("ignore:.*has a sparse configuration but runs dense")
def test_a_dense_model_does_not_read_an_evicting_cache(back: Any) -> None:
    """It would see the new tokens alone, and say nothing."""
    model = sparsify(tiny("gpt2"), Window(9))
    cache = filled(model)
    back(model)
    with pytest.raises(RuntimeError, match="attention is not Gossamer's"):
        model(IDS[:, :1], **cache)


@torch.no_grad()
def test_a_cache_whose_forward_broke_off_is_refused(sparse: PreTrainedModel) -> None:
    """As when memory runs out between two layers."""
    cache, last = filled(sparse), sparse.model.layers[2]
    hook = last.register_forward_pre_hook(lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sparse(IDS[:, :1], **cache)
    hook.remove()
    with pytest.raises(ValueError, match="broke off"):
        sparse(IDS[:, :1], **cache)


@torch.no_grad()
def test_padding_that_changes_is_refused(sparse: PreTrainedModel) -> None:
    cache = filled(sparse, **left_padded([IDS[0, 7:], IDS[1]]))
    with pytest.raises(ValueError, match="the same zeros before"):
        sparse(IDS[:, :5], attention_mask=torch.ones(2, LENGTH + 5), **cache)


@torch.no_grad()
@pytest.mark.parametrize("given", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny("gemma3")}], ids=list)
def test_an_evicting_cache_does_not_go_back(given: dict[str, Any]) -> None:
    model = sparsify(tiny("llama"), SPARSE)
    with pytest.raises(ValueError, match="cannot go back"):
        filled(model)[cache_name(model)].crop(-1)
    settings = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": 1}  # transformers 5.4 needs an end here
    with pytest.raises(ValueError, match=r"cannot go back.*evict=False|can be cropped"):
        model.generate(IDS[:1], attention_mask=ONES[:1], **settings, **given)


@torch.no_grad()
def test_a_static_cache_of_sliding_layers_alone_is_refused() -> None:
    model = sparsify(tiny("mistral"), SPARSE)
    cache = StaticCache(config=model.config, max_cache_len=100)
    with pytest.raises(ValueError, match="does not say how long it may become"):
        model(IDS, **{cache_name(model): cache})


@torch.no_grad()
def test_a_window_that_was_filled_dense_is_refused() -> None:
    """Keys that the pattern reads are gone from it."""
    model = tiny("mistral")
    cache = {cache_name(model): DynamicCache(config=model.config)}
    model(IDS, **cache)
    with pytest.raises(ValueError, match="it drops keys that the pattern may read"):
        sparsify(model, Strided(8))(IDS[:, :1], **cache)


@torch.no_grad()
def test_a_sparse_configuration_that_runs_dense_warns_once() -> None:
    model = sparsify(tiny("llama"), SPARSE)
    model.set_attn_implementation("sdpa")
    assert not is_sparse(model)
    with pytest.warns(UserWarning, match=r"runs dense, by 'sdpa'; gossamer\.resparsify\(model\)"):
        dense = model(IDS).logits
    assert torch.equal(model(IDS).logits, dense)  # without a warning, which would be an error here
    assert torch.equal(dense, tiny("llama")(IDS).logits)
    assert not torch.allclose(resparsify(model)(IDS).logits, dense)


@torch.no_grad()
def test_the_name_of_the_attention_alone_is_not_enough() -> None:
    sparsify(tiny("llama"), SPARSE)
    model = tiny("llama")
    model.set_attn_implementation("gossamer")
    with pytest.raises(RuntimeError, match=r"switch the model with gossamer\.sparsify"):
        model(IDS)


def test_a_family_whose_layers_keep_arguments_to_themselves_says_so() -> None:
    """Nemotron's layers do not hand keyword arguments on, so that nothing would reach attention."""
    model = transformers.NemotronForCausalLM(transformers.NemotronConfig(**SIZES)).eval()
    if not model._supports_attention_backend:  # in old transformers
        with pytest.raises(Unswitchable, match="AttentionInterface"):
            sparsify(model, SPARSE)
        return
    with pytest.raises(RuntimeError, match="this family is not supported"):
        sparsify(model, SPARSE)(IDS)


@torch.no_grad()
def test_a_layer_that_attends_twice_says_how_it_can() -> None:
    """DiffLlama asks for two attentions of the keys that it gave its cache once."""
    original = transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**WIDE)).eval()
    right = original(IDS).logits
    if not original._supports_attention_backend:  # in old transformers
        with pytest.raises(Unswitchable, match="AttentionInterface"):
            sparsify(original, Causal())
        return
    with pytest.raises(RuntimeError, match="evict=False"):
        sparsify(original, Causal())(IDS)
    assert (sparsify(original, Causal(), evict=False)(IDS).logits - right).abs().max() < 1e-5
