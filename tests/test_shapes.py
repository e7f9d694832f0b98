"""The shapes that public signatures promise are the shapes that go in and come out.

jaxtyping checks them when the library is imported under its hook. That happens in a process of its own: the
rest of the suite hands the library wrong shapes on purpose and traces it with torch.compile.
"""

import subprocess
import sys
from pathlib import Path

HOOK = """
import tests.shape_hook
from jaxtyping import TypeCheckError, install_import_hook
install_import_hook("gossamer", "tests.shape_hook.shapes_alone")
"""

RIGHT = """
import torch
from gossamer import *
from gossamer.config import ReformerConfig
from gossamer.models import Reformer
from gossamer.generation import generate
from gossamer.nn.cache import KVCache
from gossamer.reference import reference

q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 6)
attend(q, k, v, Causal())
attend(q, k, v, Causal(), return_lse=True, sinks=torch.zeros(4))
reference(q, k, v, Causal())
KVCache(9).attend(0, q, k[:, :, :5], k[:, :, :5], Causal())
tokens = torch.randint(100, (2, 6))
for sparse in (False, True):
    model = GPT2(GPT2Config(100, 16, n_layer=1, n_head=3, n_embed=12, use_sparse_attention=sparse))
    model(tokens, return_intermediate=True)
    model(tokens, tokens)
    generate(model, tokens, max_new_tokens=2)
SparseAttention(SparseAttentionConfig(2, 1))(torch.randn(2, 7, 192), return_intermediate=True)
compute_sparsity(SparseAttention(SparseAttentionConfig(2, 1)).generate_masks(8))
stable_softmax(torch.randn(2, 3, 4))
for decoder, head in ((True, "lm"), (False, "classification")):
    shape = {"hidden_size": 16, "axial_pos_embds_dim": (4, 12), "attn_layers": ("local", "lsh")}
    reformer = Reformer(ReformerConfig(**shape, is_decoder=decoder), head)
    tokens = torch.randint(300, (2, 150))
    output = reformer(tokens, attention_mask=torch.ones(2, 150))
    targets = tokens if decoder else torch.tensor([0, 1])
    reformer(tokens, targets, attention_mask=torch.ones(2, 150), buckets=output.buckets).loss.backward()
"""

CHOOSING = """
import torch
from gossamer.config import IndexerConfig
from gossamer.nn import IndexedAttention, KVCache, LatentAttention
from tests.nn.indexed_layers import LATENT_SHAPES

x = torch.randn(2, 40, 64)
layers = [LatentAttention(shape) for shape in LATENT_SHAPES.values()]
layers.append(IndexedAttention(4, 64, IndexerConfig(3, 16, 12, 8), n_kv_head=2))
for layer in layers:
    out, seen = layer(x, return_intermediate=True, within=torch.tensor([[0, 40], [3, 30]], dtype=torch.int32))
    layer(x, selection=seen.selection).sum().backward()
    cache = KVCache(40, padding=[0, 5])
    for piece in x.split(11, dim=1):
        layer(piece, cache=cache)
        cache.advance(piece.shape[1])
for mode in ("mha", "mqa"):
    layers[0](x, mode=mode)
"""

RELATIVES = """
import torch
from gossamer import Causal, Window
from gossamer.nn import CompressedCache, NSACache, StreamingCache
from gossamer.nn.layer_cache import LayerCache
from gossamer.nn.whole_cache import WholeCache
from tests.relatives import MODULES

caches = {"MoBA": WholeCache(), "MSA": WholeCache(), "NSA": NSACache(), "streaming": StreamingCache(),
          "sinks": LayerCache(Causal() & Window(128)), **{name: CompressedCache() for name in ("CSA", "HCA", "window")}}
x = torch.randn(2, 40, 32)
for name, made in MODULES.items():
    module = made()
    module(x).sum().backward()
    for piece in x.split(11, dim=1) if name in caches else ():
        module(piece, cache=caches[name])
"""

WRONG = """
import torch
from gossamer import Causal, attend
q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 5)
try:
    attend(q, k, k, Causal())
except TypeCheckError:
    print("seen")
"""


def run_hooked(code: str) -> str:
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", HOOK + code], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_promised_shapes_hold() -> None:
    run_hooked(RIGHT)


def test_the_promised_shapes_of_layers_that_choose_hold() -> None:
    run_hooked(CHOOSING)


def test_the_promised_shapes_of_relatives_hold() -> None:
    run_hooked(RELATIVES)


def test_a_broken_promise_would_be_seen() -> None:
    assert run_hooked(WRONG) == "seen\n"
