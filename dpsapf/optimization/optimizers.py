"""What turns a private gradient into a step. Post-processing: no choice here costs privacy."""

from collections.abc import Iterable

import torch

from dpsapf.experiment.methods import Optimizer
from dpsapf.support.errors import UserError

MOMENTUM = 0.9  # of SGD


def build_optimizer(
    name: Optimizer, parameters: Iterable[torch.nn.Parameter], rate: float, noise_deviation: float
) -> torch.optim.Optimizer:
    """Build an optimizer without weight decay.

    Args:
        name: ``adamw``; ``adamw-8bit``, with 8-bit moments; ``dp-adambc``, see `DPAdamBC`; ``sgd``, with momentum 0.9.
        parameters: what is trained.
        rate: peak learning rate.
        noise_deviation: standard deviation of the noise in each entry of the private mean gradient; 0 without noise.

    Raises:
        UserError: ``adamw-8bit`` without bitsandbytes.
    """
    if name == "dp-adambc":
        return DPAdamBC(parameters, rate, noise_deviation**2)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM)
    return (torch.optim.AdamW if name == "adamw" else _adamw_8bit())(parameters, lr=rate, weight_decay=0.0)


def _adamw_8bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("--optimizer", "adamw-8bit", "needs bitsandbytes: pip install -e '.[8bit]', or use adamw") from error
    return AdamW8bit


class DPAdamBC(torch.optim.Optimizer):
    """Adam that takes the noise's known variance out of its second moment (Tang, Shpilevskiy, Lécuyer 2024, arXiv 2312.14334).

    Under DP noise Adam's second moment is that of the gradient plus that of the noise, so that Adam divides by the noise and
    turns into SGD with momentum. Here the step is lr m / sqrt(max(v - p, f)), with m and v the bias-corrected moments, p
    the noise's variance, and f a floor. The paper tunes the floor; here it is a tenth of p, or 1e-8 of v without noise.

    Args:
        parameters: what is trained.
        rate: peak learning rate.
        noise_variance: p >= 0, of each entry of the gradient.
        betas: decay of the moments.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        rate: float,
        noise_variance: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(parameters, {"lr": rate, "noise_variance": noise_variance, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.nn.Parameter, group: dict) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(gradient), "exp_avg_sq": torch.zeros_like(gradient)}
        first, second = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - second)
        steps = float(state["step"])
        mean, square = state["exp_avg"] / (1 - first**steps), state["exp_avg_sq"] / (1 - second**steps)
        variance = group["noise_variance"]
        floor = 0.1 * variance if variance > 0 else 1e-8 * square + torch.finfo(square.dtype).tiny
        spread = torch.maximum(square - variance, torch.as_tensor(floor, dtype=square.dtype, device=square.device))
        parameter.sub_(group["lr"] * mean / spread.sqrt())
