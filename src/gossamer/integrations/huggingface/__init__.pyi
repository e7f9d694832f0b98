from .cache import EvictingLayer as EvictingLayer
from .cache import evicting_cache as evicting_cache
from .generation import stream as stream
from .switch import densify as densify
from .switch import is_sparse as is_sparse
from .switch import resparsify as resparsify
from .switch import sparsify as sparsify
