from .bigbird import BigBird as BigBird
from .gpt2 import GPT2 as GPT2
from .gpt2 import GPT2Output as GPT2Output
from .gpt2 import TransformerBlock as TransformerBlock
from .longformer import Longformer as Longformer
from .reformer import Reformer as Reformer
from .reformer import ReformerOutput as ReformerOutput
