"""What `gossamer bench` measures: one frozen tree that is the Python API and the command line alike."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ..patterns.base import require_integer

CaseName = Literal["forward", "training", "launch", "decode", "model"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
AttentionName = Literal[
    "sdpa",
    "cudnn",
    "flash",
    "naive",
    "document",
    "window",
    "window+tokens",
    "window+strided",
    "local-attention",
    "flex",
    "flex-document",
    "flex-window+tokens",
    "fa4",
]

TITLES: dict[CaseName, str] = {
    "forward": "attention forward",
    "training": "attention forward + backward",
    "launch": "launch of attention forward",
    "decode": "decoding of one token",
    "model": "GPT-2 training step",
}
"""What results call the cases."""

SINKS, TOKENS = 4, 64
"""What every query of `window+tokens` sees besides its window: first tokens, and tokens spread over the sequence."""

EVERY = 100
"""Keys of which every query of `window+strided` sees one, besides its window."""

PEERS: tuple[AttentionName, ...] = ("local-attention", "flex", "flex-document", "flex-window+tokens", "fa4")
"""Other libraries' sparse attention; slow to compile, or not installed with this library."""

USUAL: tuple[AttentionName, ...] = tuple(name for name in get_args(AttentionName) if name not in PEERS)


@dataclass(frozen=True)
class ModelBench:
    """The GPT-2 whose training step is measured; its heads are those of the attention benchmark."""

    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Context lengths, in tokens."""
    layers: int = 4
    vocabulary: int = 8192

    def __post_init__(self) -> None:
        for length in self.lengths:
            require_integer("ModelBench", "lengths", length, least=1)
        require_integer("ModelBench", "layers", self.layers, least=1)
        require_integer("ModelBench", "vocabulary", self.vocabulary, least=1)


@dataclass(frozen=True)
class BenchConfig:
    """Which cases, contenders and lengths are measured, and how carefully."""

    folder: Path = Path("runs/bench")
    """Where `bench.json`, `bench.md` and `bench.png` go."""
    cases: tuple[CaseName, ...] = ("forward", "training", "model")
    """Attention forward, attention forward and backward, the host's time for one call, attention of one new token in
    each sequence to a cache, training step of a GPT-2."""
    contenders: tuple[AttentionName, ...] = USUAL
    """Ways to compute attention; one that cannot run here is skipped, with the reason."""
    peers: bool = False
    """Also the other libraries: local-attention, FlexAttention and FlashAttention-4."""
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    """Sequence lengths of the attention cases, in tokens; for decoding, what the caches have room for."""
    batch: int = 1
    tokens: int | None = None
    """Tokens of attention forward and backward in all: the batch is as many sequences as they make, whatever `batch`
    is."""
    heads: int = 12
    key_heads: int | None = None
    """Heads of keys and values; as many as query heads by default."""
    head_width: int = 64
    window: int = 256
    """Keys that a query sees in the plain window, itself included."""
    model: ModelBench = field(default_factory=ModelBench)
    repeats: int = 5
    """Timed calls of each contender at each length; the median is reported."""
    warmup: int = 1
    seconds: float = 20.0
    """Time for one contender's repeats at one length; it is skipped if one call would take longer."""
    memory_gib: float | None = None
    """Memory that a contender may need; by default 80 % of what is free."""
    precision: Precision = "auto"
    """Number format; auto is fp32 on a CPU and bf16 on a GPU."""
    device: str = "auto"
    """`cpu`, `cuda` or `cuda:1`; auto takes a GPU where there is one."""
    threads: int | None = None
    """CPU threads; PyTorch's own choice by default."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("cases", "contenders", "lengths"):
            if not getattr(self, name):
                raise ValueError(f"BenchConfig: {name} is empty; name at least one")
        _require_known("cases", self.cases, get_args(CaseName))
        _require_known("contenders", self.contenders, get_args(AttentionName))
        _require_known("precision", (self.precision,), get_args(Precision))
        for length in self.lengths:
            require_integer("BenchConfig", "lengths", length, least=1)
        for name in ("batch", "heads", "head_width", "window", "repeats"):
            require_integer("BenchConfig", name, getattr(self, name), least=1)
        require_integer("BenchConfig", "warmup", self.warmup, least=0)
        for name in ("threads", "tokens", "key_heads"):
            if getattr(self, name) is not None:
                require_integer("BenchConfig", name, getattr(self, name), least=1)
        if self.heads % (self.key_heads or 1):
            raise ValueError(
                f"BenchConfig: key_heads is {self.key_heads}; give a number that divides {self.heads} heads"
            )
        for name in ("seconds", "memory_gib"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"BenchConfig: {name} is {value!r}; give a number above 0")

    @property
    def entered(self) -> tuple[AttentionName, ...]:
        """Everyone who takes part: the contenders and, where they are asked for, all peers."""
        return tuple(dict.fromkeys(self.contenders + (PEERS if self.peers else ())))


def _require_known(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise ValueError(f"BenchConfig: {name} holds {value!r}; give some of {', '.join(known)}")
