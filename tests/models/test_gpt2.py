import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.models.gpt2 import GPT2, TransformerBlock
from gossamer.nn.cache import KVCache
from gossamer.nn.dense import CausalSelfAttention
from gossamer.nn.sparse import SparseAttention
from gossamer.nn.windowed import WindowedAttention
from gossamer.patterns import Causal, Dilated, PerHead, Window

SMALL = {"vocab_size": 97, "context_size": 64, "n_layer": 2, "n_head": 3, "n_embed": 48}
SPARSE = SparseAttentionConfig(local_heads=2, global_heads=1, window_size=8, min_window_size=4)
BOTH = {
    "dense": GPT2Config(**SMALL),
    "sparse": GPT2Config(**SMALL, use_sparse_attention=True, sparse_config=SPARSE),
    "windowed": GPT2Config(**SMALL, windows=(6, 12), dilations=(1, 3), dilated_heads=1, positions="rotary"),
}
both = pytest.mark.parametrize("config", BOTH.values(), ids=BOTH.keys())


def text(batch=2, length=40, seed=1):
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(seed))


def gradients(model, tokens, targets):
    model.zero_grad()
    model(tokens, targets).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_a_block_picks_its_attention_by_configuration():
    assert isinstance(TransformerBlock(BOTH["dense"]).attn, CausalSelfAttention)
    assert isinstance(TransformerBlock(BOTH["sparse"]).attn, SparseAttention)
    assert isinstance(TransformerBlock(BOTH["windowed"], layer=1).attn, WindowedAttention)


def test_each_layer_follows_its_own_window():
    model = GPT2(BOTH["windowed"])
    patterns = [block.attn.pattern(64) for block in model.h]
    assert patterns == [Causal() & Window(6), PerHead([(Causal() & Window(12), 2), (Causal() & Dilated(12, 3), 1)])]
    captures = model(text(length=32), return_intermediate=True).intermediates
    assert [captured["window_size"] for captured in captures] == [6, 12]
    assert captures[0]["local_mask"].sum(1).max() == 6


def test_the_reach_of_a_token_is_the_sum_of_its_layers_windows():
    """Token 0 reaches the logits at 5 + 11·3 through one layer each, and no further."""
    model, tokens, changed = GPT2(BOTH["windowed"]).double().eval(), text(1, 60), text(1, 60)
    changed[:, 0] += 1
    moved = (model(tokens).logits != model(changed).logits).any(-1)[0]
    assert moved[5 + 11 * 3] and not moved[5 + 11 * 3 + 1 :].any()


def test_wider_windows_change_what_is_seen_and_no_weight():
    model = GPT2(BOTH["windowed"]).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wider = GPT2(replace(BOTH["windowed"], windows=(12, 24))).eval()
    wider.load_state_dict(before)
    narrow = model(text()).logits
    model.widen([12, 24])
    assert torch.equal(model(text()).logits, wider(text()).logits)
    assert not torch.equal(narrow, model(text()).logits)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.config == wider.config
    with pytest.raises(ValueError, match=r"windows is \(12,\); give one for each of n_layer=2 layers"):
        model.widen([12])
    with pytest.raises(ValueError, match="has no windows to change"):
        GPT2(BOTH["dense"]).widen([12, 24])


def test_rotary_positions_are_relative():
    """A text that stands later has the same logits, where windows hide what stands before it."""
    model, tokens = GPT2(replace(BOTH["windowed"], dilated_heads=0)).double().eval(), text(1, 60)
    later = model(tokens).logits[:, 40:]
    torch.testing.assert_close(model(tokens[:, 20:]).logits[:, 20:], later)


@pytest.mark.parametrize("name", BOTH)
def test_a_model_survives_the_disk(name, tmp_path):
    model = GPT2(BOTH[name]).eval()
    model.save(tmp_path)
    loaded = GPT2.load(tmp_path).eval()
    assert loaded.config == BOTH[name]
    assert torch.equal(loaded(text()).logits, model(text()).logits)


def test_a_rotary_model_is_no_gpt2_to_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    GPT2(BOTH["windowed"]).save(tmp_path)
    with pytest.raises(ValueError, match="gossamer_rotary_gpt2"):
        transformers.AutoConfig.from_pretrained(tmp_path)


def test_without_a_sparse_config_the_documents_split_is_taken():
    attention = TransformerBlock(GPT2Config(n_head=6, n_embed=48, use_sparse_attention=True)).attn
    assert attention.config == SparseAttentionConfig().for_heads(6)


def test_gpt2_small_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = GPT2(GPT2Config(vocab_size=50257))
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


def test_a_state_dict_fits_dense_and_sparse_alike():
    dense, sparse = GPT2(BOTH["dense"]), GPT2(BOTH["sparse"])
    sparse.load_state_dict(dense.state_dict(), strict=True)


@both
def test_initialisation_is_gpt2s(config):
    config = replace(config, n_embed=192)
    for name, parameter in GPT2(config).named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif ".ln_" in name or name.startswith("ln_"):
            assert (parameter == 1).all(), name
        else:
            expected = {"wpe.weight": 0.01}.get(name, 0.02 / math.sqrt(2 * 2) if "c_proj" in name else 0.02)
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_the_first_loss_is_that_of_a_uniform_guess():
    model = GPT2(BOTH["dense"])
    assert model(text(), text(seed=2)).loss.item() == pytest.approx(math.log(97), rel=0.02)


@both
def test_no_token_sees_a_later_one(config):
    model = GPT2(config).eval()
    tokens, changed = text(), text()
    changed[:, 25:] = text(2, 15, seed=3)
    before, after = model(tokens).logits, model(changed).logits
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


@both
@pytest.mark.parametrize("length", [1, 2, 3, 17, 64])
def test_any_length_up_to_the_context_runs(config, length):
    output = GPT2(config)(text(length=length))
    assert output.logits.shape == (2, length, 97)
    assert output.loss is None and output.intermediates is None
    assert output.logits.isfinite().all()


@both
def test_the_loss_is_that_of_the_logits(config):
    model, tokens, targets = GPT2(config).double(), text(), text(seed=2)
    targets[0, :11] = -1
    output = model(tokens, targets)
    whole = F.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(output.loss, whole)
    assert output.logits is None


@both
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(config, dropout):
    config = replace(config, dropout=dropout)
    model, tokens, targets = GPT2(config).double(), text(), text(seed=2)
    torch.manual_seed(5)
    kept = gradients(model, tokens, targets)
    model.checkpointing = True
    torch.manual_seed(5)
    recomputed = gradients(model, tokens, targets)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_checkpointing_keeps_no_activation_of_a_block():
    model, kept = GPT2(BOTH["dense"]), []
    model.checkpointing = True
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        model(text(), text(seed=2))
    assert not any(shape and shape[-1] == 4 * 48 for shape in kept)


def test_dropout_acts_in_training_only():
    model = GPT2(GPT2Config(**SMALL, dropout=0.2))
    assert not torch.equal(model(text()).logits, model(text()).logits)
    model.eval()
    assert torch.equal(model(text()).logits, model(text()).logits)


@both
@pytest.mark.parametrize("branch", ["attn", "mlp"])
def test_each_branch_drops_its_share_of_what_it_adds(config, branch):
    config = replace(config, dropout=0.25)
    block, x = TransformerBlock(config), torch.randn(4, 32, 48)
    silent = block.mlp if branch == "attn" else block.attn
    for parameter in silent.c_proj.parameters():
        parameter.data.zero_()
    assert (block(x) == x).float().mean().item() == pytest.approx(0.25, abs=0.03)


@both
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [17, 1, 22], [30, 1, 1, 8]])
def test_pieces_through_a_cache_equal_the_whole(config, pieces):
    model, tokens = GPT2(config).double().eval(), text()
    cache = KVCache(48)
    with torch.no_grad():
        logits = torch.cat([model(piece, cache=cache).logits for piece in tokens.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(logits, model(tokens, planned_length=48).logits)
    assert cache.length == 40


def test_sparse_layers_show_what_they_did_and_dense_ones_nothing():
    captures = GPT2(BOTH["sparse"])(text(length=32), return_intermediate=True).intermediates
    assert len(captures) == 2
    for captured in captures:
        assert set(captured) >= {"local_mask", "global_mask", "window_size", "sparsity_ratio"}
        assert captured["window_size"] == SPARSE.window(32)
        assert 0 < captured["sparsity_ratio"] < 1
    assert GPT2(BOTH["dense"])(text(), return_intermediate=True).intermediates == [None, None]
    assert GPT2(BOTH["sparse"])(text()).intermediates is None


@both
def test_asking_for_captures_changes_no_result(config):
    model = GPT2(config).eval()
    plain, shown = model(text()), model(text(), return_intermediate=True)
    assert torch.equal(plain.logits, shown.logits)


def test_padding_tokens_have_no_probability_and_no_gradient():
    config = GPT2Config(**{**SMALL, "vocab_size": 128}, unpadded_vocab_size=97)
    padded, plain = GPT2(config), GPT2(BOTH["dense"])
    state = plain.state_dict()
    padded.load_state_dict({**state, "wte.weight": torch.cat([state["wte.weight"], torch.randn(31, 48)])})
    logits = padded(text()).logits
    assert (logits[..., 97:] == -math.inf).all()
    torch.testing.assert_close(logits[..., :97], plain(text()).logits)
    loss = padded(text(), text(seed=2)).loss
    torch.testing.assert_close(loss, plain(text(), text(seed=2)).loss)
    loss.backward()
    assert not padded.wte.weight.grad[97:].any()


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_without_nan(config, dtype):
    model = GPT2(config)
    with torch.autocast("cpu", dtype=dtype):
        loss = model(text(), text(seed=2)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@both
def test_a_few_steps_learn_a_text_by_heart(config):
    model, tokens = GPT2(config), text(1, 33)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:]).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


@both
def test_it_compiles_in_one_graph(config):
    model = GPT2(config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(text()).logits, model(text()).logits)
    expected = gradients(model, text(), text(seed=2))
    found = gradients(compiled, text(), text(seed=2))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}"], gradient)


@both
def test_one_compiled_model_takes_several_lengths(config):
    torch.compiler.reset()  # a process compiles one function a limited number of times
    model = GPT2(config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (40, 24, 33):  # from the second on, lengths are symbols
        tokens = text(length=length)
        torch.testing.assert_close(compiled(tokens, tokens).loss, model(tokens, tokens).loss)


@pytest.mark.parametrize(
    ("tokens", "targets", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), None, r"tokens are torch\.int64 \[5\]"),
        (torch.zeros(1, 5), None, r"tokens are torch\.float32"),
        (torch.zeros(1, 65, dtype=torch.int64), None, r"position 65, beyond context_size=64"),
        (text(1, 5), text(1, 4), r"targets are torch\.int64 \[1, 4\]; give int64 \[1, 5\]"),
        (text(1, 5), torch.zeros(1, 5), r"targets are torch\.float32"),
    ],
)
def test_wrong_tokens_are_refused_by_name(tokens, targets, message):
    with pytest.raises(ValueError, match=message):
        GPT2(BOTH["dense"])(tokens, targets)


@pytest.mark.gpu
@both
def test_a_gpu_computes_what_the_cpu_does(config):
    model = GPT2(config)
    expected = gradients(model, text(), text(seed=2))
    found = gradients(model.cuda(), text().cuda(), text(seed=2).cuda())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].cpu(), gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_layers_of_one_window_share_what_is_compiled():
    """Where each had a graph of its own, those beyond PyTorch's limit of eight would silently not be compiled."""
    windows = (4,) * 6 + (8,) * 6
    model = GPT2(GPT2Config(16, 32, n_layer=12, n_head=2, n_embed=16, windows=windows, positions="rotary"))
    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    for block in model.h:
        block.compile(backend=graphs)
    plain, tokens = GPT2(model.config), torch.randint(16, (1, 32))
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, plain(tokens).logits)
    assert graphs.frame_count == 2
