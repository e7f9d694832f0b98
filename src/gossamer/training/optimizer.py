"""AdamW over a model's parameters, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import OptimizerConfig

FUSED = ("cpu", "cuda")  # devices on which one kernel updates every parameter


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and tables; biases and norms, which have one axis, keep their size."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=parameters[0].device.type in FUSED,
    )


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter: `h.0.ln_1.weight/exp_avg` and so on; each parameter must be the model's."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": tensor
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give `optimizer` the state that `state_tensors` read; its rates and decays stay its own."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(parameter, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.load_state_dict(
        {
            "state": {index: state[name] for index, name in enumerate(order) if name in state},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
