"""A whole model: the training step of a small GPT-2, dense and sparse."""

from functools import cache, partial

import torch

from ..config import GPT2Config, SparseAttentionConfig
from ..models.gpt2 import GPT2
from .case import Case, Contender, Step
from .setting import Setting

TRIAL_LENGTH = 200
TOLERANCE = 1e-4
"""Share of its largest value that a gradient of the two models may differ on the trial."""


def model_case(setting: Setting) -> Case:
    """One training step of a small GPT-2 on random tokens: forward, backward and AdamW."""
    judge = cache(partial(_model_fault, setting))
    sparse = SparseAttentionConfig().for_heads(setting.config.heads)
    contenders = (
        Contender("gpt2 dense", lambda n: _training_step(setting, _model_config(setting, n, None)), judge),
        Contender("gpt2 sparse", lambda n: _training_step(setting, _model_config(setting, n, sparse)), judge),
    )
    return Case("GPT-2 training step", setting.config.model.lengths, contenders)


def _model_config(setting: Setting, length: int, sparse: SparseAttentionConfig | None) -> GPT2Config:
    c = setting.config
    return GPT2Config(
        vocab_size=c.model.vocabulary,
        context_size=length,
        n_layer=c.model.layers,
        n_head=c.heads,
        n_embed=c.heads * c.head_width,
        use_sparse_attention=sparse is not None,
        sparse_config=sparse,
    )


def _training_step(setting: Setting, config: GPT2Config) -> Step:
    torch.manual_seed(setting.config.seed)
    model = GPT2(config).to(setting.device)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens, targets = _text(setting, config)
    half = setting.dtype != torch.float32

    def step() -> None:
        with torch.autocast(setting.device.type, setting.dtype, enabled=half):
            loss = model(tokens, targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _text(setting: Setting, config: GPT2Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and their successors, [B, N] each."""
    shape = (setting.config.batch, config.context_size + 1)
    tokens = torch.randint(config.vocab_size, shape, device=setting.device)
    return tokens[:, :-1], tokens[:, 1:]


def _model_fault(setting: Setting) -> str | None:
    """Whether the sparse model, told to see everything, has the loss and the gradients of the dense one."""
    n = TRIAL_LENGTH
    everything = SparseAttentionConfig(adaptive_window=False, window_size=n, global_token_ratio=1.0)
    sparse_config = everything.for_heads(setting.config.heads)
    dense_model = GPT2(_model_config(setting, n, None)).to(setting.device)
    sparse_model = GPT2(_model_config(setting, n, sparse_config)).to(setting.device)
    sparse_model.load_state_dict(dense_model.state_dict())
    text = _text(setting, dense_model.config)
    ours, theirs = _loss_and_gradients(sparse_model, text), _loss_and_gradients(dense_model, text)
    for name, expected in theirs.items():
        error, largest = (ours[name] - expected).abs().max().item(), expected.abs().max().item()
        if not error <= TOLERANCE * largest:
            return f"{name} of the sparse model that sees everything is {error:.2e} off the dense one's"
    return None


def _loss_and_gradients(model: GPT2, text: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    loss = model(*text).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"the loss": loss.detach(), **gradients}
