"""Which parts of a text are read, and that a head's own way of looking is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gossamer import GPT2, Causal, GPT2Config, PerHead, Sinks, Window
from gossamer.convert.assignment import assign
from gossamer.convert.candidates import shares
from gossamer.convert.checkpoint import open_model
from gossamer.convert.mass import kept_mass
from gossamer.convert.measure import measure, samples
from gossamer.tokenizer import ByteTokenizer

from .tiny import FAMILIES, TEXT, decoder, folder_of, near_and_first, save

NEAR, FIRST, ALL = Causal() & Window(8), Causal() & Sinks(4), Causal()
CANDIDATES = (NEAR, FIRST, ALL)


def test_a_head_s_own_way_of_looking_is_found(tmp_path: Path) -> None:
    """One head looks at the last few tokens, the other at the first: each gets the pattern that says so."""
    model = open_model(save(near_and_first(), tmp_path))
    measured = measure(model, samples(model, TEXT, 64, most=2), CANDIDATES)
    near, first = measured.mass[0]
    assert near[0] > 0.99 and first[1] > 0.99
    assert near[1] < 0.3 and first[0] < 0.3
    chosen = assign(measured, 0.3)
    assert chosen.patterns == (PerHead([(NEAR, 1), (FIRST, 1)]), PerHead([(FIRST, 1), (NEAR, 1)]))
    assert chosen.kept > 0.99 and chosen.share < 0.25
    one_for_all = measured.mass.mean(axis=(0, 1))[:2]
    assert one_for_all.max() < 0.7


def test_sequences_are_averaged(tmp_path: Path) -> None:
    model = open_model(folder_of("qwen3", tmp_path))
    sequences = samples(model, TEXT, 40, most=3)
    alone = []
    for tokens in sequences:
        heard: list[NDArray] = []
        model.read(tokens, lambda seen, heard=heard: heard.append(kept_mass(seen, CANDIDATES).numpy()))
        alone.append(np.stack(heard))
    measured = measure(model, sequences, CANDIDATES)
    np.testing.assert_allclose(measured.mass, np.mean(alone, axis=0), rtol=1e-6)
    assert np.std(alone, axis=0).max() > 1e-3
    assert measured.key_heads == (2, 2) and measured.context == 40
    np.testing.assert_array_equal(measured.share, [shares(CANDIDATES, 40)] * 2)


def test_a_sliding_layer_pays_for_its_own_window_alone(tmp_path: Path) -> None:
    model = open_model(folder_of("gemma2", tmp_path))
    measured = measure(model, samples(model, TEXT, 40, most=1), CANDIDATES)
    np.testing.assert_array_equal(measured.share, [shares(CANDIDATES, 40, 20), shares(CANDIDATES, 40)])
    np.testing.assert_allclose(measured.mass[:, :, -1], 1, atol=1e-5)


def test_samples_are_spread_over_the_whole_text(tmp_path: Path) -> None:
    model = open_model(save(decoder(FAMILIES["gpt2"]), tmp_path, opening=True))
    ids = model.encode(TEXT)
    sequences = samples(model, TEXT, 50, most=4)
    assert all(sequence.shape == (1, 50) and sequence.dtype == torch.int64 for sequence in sequences)
    assert all(sequence[0, 0] == model.opening[0] for sequence in sequences)
    assert [sequences[0][0, 1:].tolist(), sequences[-1][0, 1:].tolist()] == [ids[:49], ids[-49:]]
    assert len(samples(model, TEXT, 50, most=10**6)) == len(ids) // 49


def test_the_context_is_that_of_the_model_unless_given(tmp_path: Path) -> None:
    model = open_model(folder_of("gpt2", tmp_path))
    assert samples(model, TEXT)[0].shape == (1, 64)


@pytest.mark.parametrize(
    ("text", "context", "most", "said"),
    [
        ("low", 40, 1, "text has 1 tokens, and a context of 40 needs 40; give a longer text or a smaller context"),
        (TEXT, 65, 1, "context is 65, but the model has 64 positions; give at most that"),
        (TEXT, 0, 1, "context is 0"),
        (TEXT, 40, 0, "most is 0"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, context: int, most: int, said: str, tmp_path: Path) -> None:
    model = open_model(folder_of("gpt2", tmp_path))
    with pytest.raises(ValueError, match=said):
        samples(model, text, context, most=most)


def test_the_price_can_be_refused_before_the_text_is_read(tmp_path: Path) -> None:
    model = open_model(folder_of("gpt2", tmp_path))
    done: list[int] = []

    def too_dear(share: NDArray) -> None:
        np.testing.assert_array_equal(share, [shares(CANDIDATES, 40)] * 2)
        raise ValueError("too dear")

    sequences = samples(model, TEXT, 40, most=2)
    with pytest.raises(ValueError, match="too dear"):
        measure(model, sequences, CANDIDATES, before=too_dear, after=done.append)
    assert done == []
    measure(model, sequences, CANDIDATES, after=done.append)
    assert done == [1, 2]


def test_sequences_have_one_length(tmp_path: Path) -> None:
    model = open_model(folder_of("gpt2", tmp_path))
    for sequences in ([], [torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)]):
        with pytest.raises(ValueError, match="give at least one, all of one length"):
            measure(model, sequences, CANDIDATES)


def test_another_model_s_tokenizer_is_named(tmp_path: Path) -> None:
    model = open_model(folder_of("gpt2", tmp_path))
    model.vocabulary = 200
    with pytest.raises(ValueError, match=r"token \d+, but the model knows 200; give the tokenizer that belongs"):
        samples(model, TEXT, 40)


def test_damaged_weights_are_not_measured(tmp_path: Path) -> None:
    broken = near_and_first()
    with torch.no_grad():
        broken.transformer.h[1].attn.c_attn.bias[0] = float("nan")
    model = open_model(save(broken, tmp_path))
    with pytest.raises(ValueError, match="gives no finite numbers; its weights are damaged"):
        measure(model, samples(model, TEXT, 40, most=1), CANDIDATES)


def test_damaged_attention_is_not_measured(tmp_path: Path) -> None:
    broken = GPT2(GPT2Config(vocab_size=257, context_size=64, n_layer=2, n_head=4, n_embed=32))
    with torch.no_grad():
        broken.h[1].attn.c_attn.bias[0] = float("nan")
    broken.save(tmp_path)
    ByteTokenizer().save(tmp_path)
    model = open_model(tmp_path)
    with pytest.raises(ValueError, match="the attention of layer 1, head 0 is not finite"):
        measure(model, samples(model, TEXT, 40, most=1), CANDIDATES)
