from .bigbird import BigBirdAttention as BigBirdAttention
from .cache import KVCache as KVCache
from .dense import CausalSelfAttention as CausalSelfAttention
from .lsh import LSHAttention as LSHAttention
from .masks import compute_sparsity as compute_sparsity
from .masks import masked_attention as masked_attention
from .masks import stable_softmax as stable_softmax
from .sparse import SparseAttention as SparseAttention
