"""What a run trains: an adapter on the chosen matrices, those matrices, the attention modules, all biases, or the whole UNet."""

import re
import typing

import pandas as pd
import torch

from dpsapf.experiment.columns import MATRIX, RANK, SELECTED
from dpsapf.experiment.methods import Adapter, method
from dpsapf.experiment.runs import RunSpec
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import child_seed, torch_generator

if typing.TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from peft import PeftConfig


def trainable(
    unet: "UNet2DConditionModel", run: RunSpec, selection: pd.DataFrame, rank: int, alpha: float
) -> dict[str, torch.nn.Parameter]:
    """Freeze the UNet, change it as the run's method says, and return what is trained.

    Args:
        unet: changed in place.
        run: its method, adapter and seed count.
        selection: the run's selection.csv; it has each matrix' own rank where the run's is ``auto``.
        rank: rank of an adapter; with ranks of their own, the one whose scale all have.
        alpha: adapter's alpha.

    Returns:
        Parameters by their name in the UNet, in a fixed order, each with ``requires_grad``.

    Raises:
        UserError: nothing is selected, or a selected name is not in the UNet.
    """
    row = method(run.method)
    unet.requires_grad_(False).train()  # diffusers checkpoints in training mode only; there is no dropout
    names = selection.loc[selection[SELECTED], MATRIX].tolist()
    _check_selected(unet, names)
    if row.randomises_rest:
        randomise(unet, selection.loc[~selection[SELECTED], MATRIX].tolist(), run.seed)
    if row.trained == "adapter":
        ranks = selection.loc[selection[SELECTED], RANK] if run.lora_rank == "auto" else [rank] * len(names)
        add_adapter(unet, run.adapter, dict(zip(names, ranks, strict=True)), rank, alpha, run.seed)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or _is_trained(unet, name, row.trained, names))
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def _is_trained(unet: torch.nn.Module, name: str, trained: str, selected: list[str]) -> bool:
    if trained == "weights":
        return name.removesuffix(".weight") in selected
    if trained == "attention":
        return any(part in name.split(".") for part in ("attn1", "attn2"))
    return trained == "unet" or (trained == "biases" and name.endswith(".bias"))


def _check_selected(unet: torch.nn.Module, selected: list[str]) -> None:
    modules = dict(unet.named_modules())
    missing = [name for name in selected if name not in modules]
    if missing or not selected:
        raise UserError("selection", missing or selected, "must name matrices of the UNet: run select-matrices again")


def add_adapter(unet: torch.nn.Module, adapter: Adapter, selected: dict[str, int], rank: int, alpha: float, seed: int) -> None:
    """Inject peft's adapter into the selected modules; its update is 0 at the start.

    Args:
        unet: changed in place; the adapter's parameters get ``requires_grad``.
        adapter: ``lora`` (Hu et al. 2021), ``rslora`` (scaled by alpha/sqrt(r), Kalajdzievski 2023), ``dora`` (Liu et al.
            2024), ``loha`` (Hyeon-Woo et al. 2022), ``lokr`` (Yeh et al. 2024), ``ffa-lora`` (A stays at its random start,
            Sun et al. 2024), ``la-lora`` (B and A in turn, see `resting`).
        selected: ranks by dotted names of linear layers or convolutions.
        rank: r.
        alpha: scale; LoRA's update is alpha/r B A, whatever rank a matrix has of its own.
        seed: of the initial values.
    """
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(child_seed(seed, "lora"))
        inject_adapter_in_model(_peft_config(adapter, selected, rank, alpha), unet)
    if adapter == "ffa-lora":
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and "lora_A" not in name)


def _peft_config(adapter: Adapter, selected: dict[str, int], rank: int, alpha: float) -> "PeftConfig":
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    if adapter in ("loha", "lokr"):
        return {"loha": LoHaConfig, "lokr": LoKrConfig}[adapter](r=rank, alpha=alpha, target_modules=list(selected))
    scaled, weighted = adapter == "rslora", adapter == "dora"
    own = {name: int(value) for name, value in selected.items() if value != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(selected),
        use_rslora=scaled,
        use_dora=weighted,
        rank_pattern={f"^{re.escape(name)}": value for name, value in own.items()},
        alpha_pattern={f"^{re.escape(name)}": alpha * value / rank for name, value in own.items()},
    )


def resting(names: list[str], adapter: Adapter | None, step: int) -> frozenset[int]:
    """Return the positions of the parameters that a step leaves alone: in even steps A, in odd ones B, for ``la-lora``.

    Alternating keeps the noise in B from meeting the noise in A within a step (LA-LoRA, arXiv 2602.19926, without its low-pass
    filter). B comes first: at its start, 0, A has no gradient.
    """
    if adapter != "la-lora":
        return frozenset()
    rests = "lora_B" if step % 2 else "lora_A"
    return frozenset(position for position, name in enumerate(names) if rests in name.split("."))


@torch.no_grad()
def randomise(unet: torch.nn.Module, names: list[str], seed: int) -> None:
    """Replace weight matrices by normal draws with their mean and standard deviation (the paper's noisy variant).

    Drawn on the CPU: sampling makes them again from the seed, maybe on another device than training did.
    """
    for name in names:
        weight = unet.get_submodule(name).weight
        mean, deviation = weight.mean().item(), weight.std().item()
        weight.copy_(torch.empty(weight.shape).normal_(mean, deviation, generator=torch_generator(seed, "noisy", name)))


def load_weights(parameters: dict[str, torch.nn.Parameter], weights: dict[str, torch.Tensor]) -> None:
    """Copy trained weights into the parameters that `trainable` returned.

    Raises:
        UserError: the names differ: the weights are of another selection or method.
    """
    if set(parameters) != set(weights):
        differing = sorted(set(parameters) ^ set(weights))[0]
        raise UserError("weights", differing, "is not in both weights and selection: they are of different runs")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
