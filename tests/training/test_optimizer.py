"""AdamW decays matrices only, and its state survives as named tensors."""

import torch
from torch import nn

from gossamer.training.config import OptimizerConfig
from gossamer.training.optimizer import adamw, load_state_tensors, state_tensors


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_only_matrices_decay() -> None:
    net = model()
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    optimizer = adamw(net, OptimizerConfig(learning_rate=0.5, weight_decay=0.1))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        share = 0.95 if parameter.dim() == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), share * before[name])


def test_the_configuration_reaches_the_optimizer() -> None:
    config = OptimizerConfig(learning_rate=0.25, weight_decay=0.5, beta1=0.8, beta2=0.7, epsilon=1e-3)
    matrices, vectors = adamw(model(), config).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0.0)
    for group in (matrices, vectors):
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.25, (0.8, 0.7), 1e-3, True)


def test_a_restored_optimizer_goes_on_bit_for_bit() -> None:
    straight, config = model(), OptimizerConfig(learning_rate=0.1)
    optimizer = adamw(straight, config)
    step(straight, optimizer, 1)
    resumed = model()
    resumed.load_state_dict(straight.state_dict())
    other = adamw(resumed, config)
    load_state_tensors(resumed, other, {k: v.clone() for k, v in state_tensors(straight, optimizer).items()})
    step(straight, optimizer, 2)
    step(resumed, other, 2)
    for one, two in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_an_unused_optimizer_has_no_state() -> None:
    net = model()
    optimizer = adamw(net, OptimizerConfig())
    assert state_tensors(net, optimizer) == {}
    load_state_tensors(net, optimizer, {})
