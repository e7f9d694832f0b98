import json
import resource
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.models.gpt2 import GPT2

SEES_EVERYTHING = SparseAttentionConfig(
    local_heads=1, global_heads=1, window_size=64, adaptive_window=False, global_token_ratio=1.0
)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=97, n_positions=64, n_embd=128, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # so that biases and layer norms count, and logits are not tiny
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def logits(model, tokens):
    with torch.inference_mode():
        return model.eval()(tokens).logits


def agree(model, other, tokens):
    difference = (logits(model, tokens) - logits(other, tokens)).abs().max().item()
    assert difference <= 1e-4


def rewrite(folder, change):
    """Applies `change` to the tensors of the folder's file."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_transformers_folder_gives_equal_logits(theirs, folder, tokens):
    model = GPT2.load(folder)
    assert (model.config.n_head, model.config.dropout) == (2, 0.1)
    agree(model, theirs, tokens)


def test_a_transformers_file_without_configuration_gives_equal_logits(theirs, folder, tokens):
    (folder / "config.json").unlink()
    agree(GPT2.load(folder / "model.safetensors"), theirs, tokens)


def test_sparse_attention_that_sees_everything_gives_equal_logits(theirs, folder, tokens):
    model = GPT2.load(folder, sparse_config=SEES_EVERYTHING)
    assert model.config.use_sparse_attention
    agree(model, theirs, tokens)


def test_old_files_with_masks_without_prefix_and_with_a_tied_head_are_read(theirs, folder, tokens):
    def aged(tensors):
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(3)}
        masks |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(3)}
        return {**bare, **masks, "lm_head.weight": bare["wte.weight"].clone()}

    rewrite(folder, aged)
    agree(GPT2.load(folder), theirs, tokens)


def test_half_precision_files_are_read_as_float32(theirs, folder, tokens):
    rewrite(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    model = GPT2.load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (logits(model, tokens) - logits(theirs, tokens)).abs().max() < 0.1


def test_a_model_saved_here_opens_in_transformers(theirs, folder, tokens, tmp_path):
    GPT2.load(folder).save(tmp_path / "saved")
    reopened, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(reopened, tokens), logits(theirs, tokens))


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=97, context_size=16, n_layer=2, n_head=2, n_embed=6),
        GPT2Config(vocab_size=97, context_size=16, n_layer=1, n_head=1, n_embed=8, bias=False, dropout=0.1),
        GPT2Config(
            vocab_size=128,
            context_size=16,
            n_head=3,
            n_layer=1,
            n_embed=12,
            use_sparse_attention=True,
            unpadded_vocab_size=97,
        ),
        GPT2Config(
            vocab_size=97,
            context_size=16,
            n_head=2,
            n_layer=1,
            n_embed=8,
            use_sparse_attention=True,
            sparse_config=SEES_EVERYTHING,
        ),
    ],
)
def test_saving_and_loading_changes_nothing(config, tmp_path):
    model = GPT2(config)
    model.save(tmp_path)
    loaded = GPT2.load(tmp_path)
    assert loaded.config == config
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in loaded.parameters())


def test_a_loaded_model_does_not_live_in_its_file(theirs, folder, tokens):
    model = GPT2.load(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(10_000)
        file.write(bytes(500_000))
    agree(model, theirs, tokens)


def test_a_longer_context_repeats_the_position_table(folder):
    model = GPT2.load(folder, context_size=150)
    table = GPT2.load(folder).wpe.weight
    assert model.config.context_size == 150
    assert torch.equal(model.wpe.weight, torch.cat([table, table, table[:22]]))
    assert logits(model, torch.zeros(1, 150, dtype=torch.int64)).isfinite().all()


def test_a_shorter_context_keeps_the_first_positions(theirs, folder, tokens):
    model = GPT2.load(folder, context_size=40)
    assert model.wpe.weight.shape == (40, 128)
    agree(model, theirs, tokens)


def test_a_padded_vocabulary_changes_no_logit_and_is_never_predicted(theirs, folder, tokens, tmp_path):
    model = GPT2.load(folder, vocab_size=128)
    found = logits(model, tokens)
    assert (found[..., 97:] == -torch.inf).all()
    torch.testing.assert_close(found[..., :97], logits(theirs, tokens), rtol=0, atol=1e-4)
    model.save(tmp_path / "padded")
    assert GPT2.load(tmp_path / "padded").config.known_tokens == 97


@pytest.mark.parametrize(("argument", "value"), [("vocab_size", 96), ("vocab_size", 0), ("context_size", 0)])
def test_sizes_that_do_not_fit_are_refused_by_name(folder, argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}"):
        GPT2.load(folder, **{argument: value})


def test_head_counts_that_do_not_sum_name_the_way_out(folder):
    with pytest.raises(ValueError, match=r"do not sum to n_head=2.*for_heads\(2\)"):
        GPT2.load(folder, sparse_config=SparseAttentionConfig())


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("h.1.mlp.c_fc.weight", None, "h.1.mlp.c_fc.weight is missing"),
        (
            "h.1.mlp.c_fc.weight",
            torch.zeros(512, 128),
            r"h.1.mlp.c_fc.weight has shape \[512, 128\] where \[128, 512\]",
        ),
        ("h.1.attn.rotary", torch.zeros(3), "h.1.attn.rotary is no part of a GPT-2"),
        ("ln_f.weight", torch.zeros(128, dtype=torch.int8), "ln_f.weight is I8"),
        ("lm_head.weight", torch.zeros(97, 128), "lm_head.weight differs from wte.weight"),
    ],
)
def test_wrong_tensors_are_named_with_their_file(folder, name, fault, message):
    def spoiled(tensors):
        tensors.pop(f"transformer.{name}", None)
        return tensors if fault is None else {**tensors, f"transformer.{name}": fault}

    rewrite(folder, spoiled)
    with pytest.raises(ValueError, match=rf"gpt2/model\.safetensors: {message}"):
        GPT2.load(folder)


@pytest.mark.parametrize("layers", [2, 4, 10**12])
def test_a_wrong_number_of_layers_is_named_before_anything_grows_with_it(folder, layers):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"n_layer": layers}))
    with pytest.raises(ValueError, match=rf"it has 3 layers, but config\.json says {layers}"):
        GPT2.load(folder)


@pytest.mark.parametrize("share", [0, 0.0001, 0.5, 0.999999])
def test_a_file_cut_short_is_named(folder, share):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors: no whole safetensors file .*fetch it again"):
        GPT2.load(folder)


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no tensors here")
    with pytest.raises(ValueError, match=r"notes\.txt: no whole safetensors file"):
        GPT2.load(tmp_path / "notes.txt")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: no GPT-2"):
        GPT2.load(tmp_path / "other.safetensors")


def test_places_without_weights_say_what_to_give_instead(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"give a folder with model\.safetensors"):
        GPT2.load(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match="pickle"):
        GPT2.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(FileNotFoundError, match="several files"):
        GPT2.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="training run"):
        GPT2.load(tmp_path)


def test_without_configuration_an_unusual_width_cannot_be_guessed(tmp_path):
    GPT2(GPT2Config(vocab_size=9, context_size=4, n_layer=1, n_head=2, n_embed=10)).save(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"width 10 .*config\.json beside it"):
        GPT2.load(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_save_without_room_leaves_the_model_that_was_there(tmp_path):
    config = GPT2Config(vocab_size=97, context_size=16, n_layer=1, n_head=2, n_embed=128)
    old = GPT2(config)
    old.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"not saved .*untouched; free some space"):
            GPT2(replace(config, dropout=0.5)).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
