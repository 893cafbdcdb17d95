"""What changes while training, and how a checkpoint keeps it."""

from dataclasses import dataclass, field

import torch

from dpsapf.privacy.meter import Meter
from dpsapf.support.checkpoint import State, named


@dataclass
class TrainingState:
    """Everything that changes while training.

    All randomness of a step is derived from the run's seed and the step's number, so no generator state
    needs to be kept.

    Attributes:
        parameters: trained parameters by name.
        optimizer: AdamW over them, in their order.
        average: exponential moving average of the parameters, or None.
        meter: what was measured so far.
        step: steps done.
        log: one row per step done.
        seconds: training time so far.
    """

    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: dict[str, torch.Tensor] | None
    meter: Meter
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def contents(state: TrainingState) -> State:
    """Give everything that a checkpoint keeps of a state."""
    tensors = {f"parameter/{name}": value.detach() for name, value in state.parameters.items()}
    tensors |= {f"average/{name}": value for name, value in (state.average or {}).items()}
    for name, parameter in state.parameters.items():
        values = state.optimizer.state[parameter]
        tensors |= {f"optimizer/{key}/{name}": torch.as_tensor(value) for key, value in values.items()}
    measured, measures = state.meter.state()
    tensors |= {f"meter/{name}": value for name, value in measures.items()}
    return {"step": state.step, "log": state.log, "seconds": state.seconds, "measured": measured}, tensors


def restore(state: TrainingState, facts: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Put what `contents` gave into a state of the same run."""
    _restore_tensors(state, tensors)
    state.meter.restore(facts["measured"], named(tensors, "meter/"))
    state.step, state.log, state.seconds = facts["step"], facts["log"], facts["seconds"]


def _restore_tensors(state: TrainingState, tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            if state.average is not None:
                state.average[name].copy_(tensors[f"average/{name}"])
    for name, value in named(tensors, "optimizer/").items():
        key, owner = name.split("/", 1)
        parameter = state.parameters[owner]
        state.optimizer.state[parameter][key] = _optimizer_value(value, parameter)


def _optimizer_value(value: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor | int:
    """Put moments beside their parameter; counters stay on the CPU, as an integer (8-bit) or a float tensor (torch)."""
    if value.dim():
        return value.to(parameter.device)
    return value if value.is_floating_point() else int(value)
