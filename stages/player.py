"""One network of a training with its optimizer and its moving average."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stages.optimization import Optimization


class Player:
    """One network of a training, its optimizer, and the moving average of its parameters if there is one.

    Args:
        module: whose parameters are trained.
        optimization: how.
        rate_scales: what the learning rate of each parameter is multiplied with, by its name; ``None``: nothing.
    """

    def __init__(self, module: nn.Module, optimization: Optimization, rate_scales: Mapping[str, float] | None = None) -> None:
        self.module = module
        self.optimization = optimization
        self.optimizer = _adamw(module, optimization, rate_scales)
        decay = optimization.ema_decay
        following: Any = get_ema_multi_avg_fn(decay) if decay else None  # type: ignore[no-untyped-call]
        self.average = AveragedModel(module, multi_avg_fn=following) if decay else None
        self.num_updates = 0
        self._taken: list[nn.Parameter] = []

    @property
    def trained(self) -> nn.Module:
        """What the training came to: the average if there is one."""
        return self.module if self.average is None else self.average.module

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [value for value in self.module.parameters() if value.requires_grad]

    def gradients(self) -> list[Tensor]:
        """Those that there are, in the order of the parameters."""
        return [value.grad for value in self.parameters() if value.grad is not None]

    def take_gradients(self) -> list[Tensor]:
        """Those that there are; afterwards there are none."""
        self._taken = [value for value in self.parameters() if value.grad is not None]
        taken = self.gradients()
        self.optimizer.zero_grad(set_to_none=True)
        return taken

    def put_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Others in the place of those that were taken last."""
        for parameter, gradient in zip(self._taken, gradients, strict=True):
            parameter.grad = gradient

    def norm(self) -> Tensor:
        """The norm of all gradients together, before clipping."""
        norm: Tensor = nn.utils.get_total_norm(self.gradients())
        return norm.detach()

    def update(self, rate: float, norm: Tensor, refused: Tensor) -> None:
        """Step along the gradients that are there, unless the step is refused; nobody waits to learn which.

        Args:
            rate: the learning rate, before it is scaled for each parameter.
            norm: of the gradients.
            refused: one where the step must leave no trace in parameters and moments, zero elsewhere; ``float32 []``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        limit = self.optimization.clip_grad_norm
        nn.utils.clip_grads_with_norm_(self.parameters(), math.inf if limit is None else limit, norm)
        self.optimizer.found_inf = refused  # type: ignore[attr-defined]  # how a fused optimizer is told by gradient scalers
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.module)
        self.num_updates += 1

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resume needs."""
        tensors = {f"module/{name}": value for name, value in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            tensors |= {f"optimizer/{name}/{key}": value for key, value in self.optimizer.state[parameter].items()}
        average = {} if self.average is None else self.average.state_dict()
        return tensors | {f"average/{name}": value for name, value in average.items()}

    def restore(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Take over the state that was saved after ``num_updates`` updates.

        Raises:
            RuntimeError: it is not the state of this network and optimizer.
        """
        self.module.load_state_dict(below(tensors, "module/"))
        if self.average is not None:
            self.average.load_state_dict(below(tensors, "average/"))
        for name, parameter in self.module.named_parameters():
            state = below(tensors, f"optimizer/{name}/")
            if set(state) != ({"step", "exp_avg", "exp_avg_sq"} if num_updates and parameter.requires_grad else set()):
                raise RuntimeError(f"the optimizer's state of {name} after {num_updates} updates is {sorted(state)}")
            self.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates = num_updates


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _adamw(module: nn.Module, config: Optimization, rate_scales: Mapping[str, float] | None) -> torch.optim.AdamW:
    named = {name: value for name, value in module.named_parameters() if value.requires_grad}
    scales = dict.fromkeys(named, 1.0) if rate_scales is None else {name: rate_scales[name] for name in named}
    kinds = [(scale, is_matrix) for scale in dict.fromkeys(scales.values()) for is_matrix in (True, False)]
    groups = [
        {
            "params": [value for name, value in named.items() if (scales[name], value.ndim > 1) == (scale, is_matrix)],
            "weight_decay": config.weight_decay if is_matrix else 0.0,
            "rate_scale": scale,
        }
        for scale, is_matrix in kinds
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
