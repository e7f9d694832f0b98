import pytest
import torch

from gossamer import GPT2, Causal, GPT2Config, Window, attend
from gossamer.nn.cache import KVCache

WINDOWED = Causal() & Window(4)


def tokens(count, seed=0):
    return torch.randn(1, 3, count, 4, generator=torch.Generator().manual_seed(seed))


def test_layers_of_one_forward_stand_at_the_same_place():
    cache = KVCache(16)
    pieces = tokens(12).split([5, 1, 6], dim=2)
    out = {0: [], 1: []}
    for piece in pieces:
        for layer, pattern in enumerate((WINDOWED, Causal())):
            out[layer].append(cache.attend(layer, piece, piece, piece, pattern))
        cache.advance(piece.shape[2])
    whole = tokens(12)
    for layer, pattern in enumerate((WINDOWED, Causal())):
        torch.testing.assert_close(torch.cat(out[layer], dim=2), attend(whole, whole, whole, pattern))
    assert cache.length == 12


def test_each_layer_holds_what_its_own_pattern_reads():
    cache = KVCache(64)
    for layer, pattern in enumerate((WINDOWED, Causal())):
        cache.attend(layer, tokens(40), tokens(40), tokens(40), pattern)
    assert [cache.layers[layer].held for layer in (0, 1)] == [4, 40]
    assert cache.nbytes == cache.layers[0].nbytes + cache.layers[1].nbytes
    assert cache.layers[0].nbytes == 2 * 3 * 4 * 4 * 4


def test_more_than_the_capacity_is_refused_and_nothing_changes():
    cache = KVCache(8)
    cache.attend(0, tokens(7), tokens(7), tokens(7), WINDOWED)
    cache.advance(7)
    with pytest.raises(ValueError, match=r"full: 7 of capacity=8 .* 2 more .* capacity=9"):
        cache.attend(0, tokens(2), tokens(2), tokens(2), WINDOWED)
    assert cache.layers[0].seen == 7
    assert cache.attend(0, tokens(1), tokens(1), tokens(1), WINDOWED).shape == (1, 3, 1, 4)


def test_a_layer_keeps_the_pattern_that_it_began_with():
    cache = KVCache(8)
    cache.attend(0, tokens(2), tokens(2), tokens(2), WINDOWED)
    with pytest.raises(ValueError, match=r"layer 0 began with .*Window\(size=4\).* begin with a new cache"):
        cache.attend(0, tokens(1), tokens(1), tokens(1), Causal())


def test_a_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="KVCache: capacity is 0"):
        KVCache(0)


def test_a_layer_that_took_other_tokens_than_were_counted_is_refused():
    cache = KVCache(16)
    cache.attend(0, tokens(3), tokens(3), tokens(3), WINDOWED)
    with pytest.raises(ValueError, match=r"layer 0 has taken 3 tokens, but 0 are counted"):
        cache.attend(0, tokens(1), tokens(1), tokens(1), WINDOWED)


def test_padding_that_is_no_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="KVCache: padding of a sequence is -1"):
        KVCache(16, padding=[0, -1])


def test_a_first_call_that_fails_leaves_no_layer_behind():
    cache = KVCache(64)
    with pytest.raises(ValueError, match="must divide"):
        cache.attend(0, tokens(5), tokens(5)[:, :2], tokens(5)[:, :2], WINDOWED)
    assert not cache.layers
    cache.attend(0, tokens(5), tokens(5), tokens(5), Causal())


def test_a_compiled_model_is_not_compiled_again_for_each_token():
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    model = GPT2(GPT2Config(vocab_size=16, context_size=64, n_layer=1, n_head=3, n_embed=12)).eval()
    compiled, cache, text = torch.compile(model, backend=counting), KVCache(64), torch.arange(40)[None] % 16
    out, counts = [], []
    with torch.no_grad():
        for piece in text.split([20, *[1] * 20], dim=1):
            out.append(compiled(piece, cache=cache).logits)
            counts.append(len(graphs))
        whole = model(text, planned_length=64).logits
    assert counts[4] == counts[-1], "a token later on was compiled anew"
    torch.testing.assert_close(torch.cat(out, dim=1), whole)
