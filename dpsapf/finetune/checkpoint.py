"""Checkpoints that a killed run continues from: safetensors, written atomically, bound to their settings; private."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dpsapf.privacy.meter import Meter
from dpsapf.support.files import atomic


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


def save_checkpoint(path: Path, state: TrainingState, identity: str) -> None:
    """Write a checkpoint.

    Args:
        path: file to replace.
        state: what to keep.
        identity: digest of everything that the run depends on.
    """
    tensors = {f"parameter/{name}": value.detach() for name, value in state.parameters.items()}
    tensors |= {f"average/{name}": value for name, value in (state.average or {}).items()}
    for name, parameter in state.parameters.items():
        values = state.optimizer.state[parameter]
        tensors |= {f"optimizer/{key}/{name}": torch.as_tensor(value) for key, value in values.items()}
    measured, measures = state.meter.state()
    tensors |= {f"meter/{name}": value for name, value in measures.items()}
    facts = {"identity": identity, "step": state.step, "log": state.log, "seconds": state.seconds, "measured": measured}
    with atomic(path) as temporary:
        copies = {name: value.clone().contiguous() for name, value in tensors.items()}  # 8-bit moments share their code book
        save_file(copies, temporary, {"facts": json.dumps(facts)})


def load_checkpoint(path: Path, state: TrainingState, identity: str) -> bool:
    """Restore a checkpoint of the same identity into ``state``; return False if there is none."""
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        if facts["identity"] != identity:
            return False
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    _restore_tensors(state, tensors)
    state.meter.restore(facts["measured"], _named(tensors, "meter/"))
    state.step, state.log, state.seconds = facts["step"], facts["log"], facts["seconds"]
    return True


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_tensors(state: TrainingState, tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            if state.average is not None:
                state.average[name].copy_(tensors[f"average/{name}"])
    for name, value in _named(tensors, "optimizer/").items():
        key, owner = name.split("/", 1)
        parameter = state.parameters[owner]
        state.optimizer.state[parameter][key] = _optimizer_value(value, parameter)


def _optimizer_value(value: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor | int:
    """Put moments beside their parameter; counters stay on the CPU, as an integer (8-bit) or a float tensor (torch)."""
    if value.dim():
        return value.to(parameter.device)
    return value if value.is_floating_point() else int(value)
