"""What a run trains: LoRA on the selected matrices, or every UNet parameter."""

import typing

import torch

from dpsapf.errors import UserError
from dpsapf.randomness import child_seed

if typing.TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def add_adapter(
    unet: "UNet2DConditionModel", adapter: str, selected: list[str], rank: int, alpha: float, seed: int
) -> dict[str, torch.nn.Parameter]:
    """Freeze the UNet, then make the method's parameters trainable.

    Args:
        unet: changed in place.
        adapter: ``lora`` or ``full``.
        selected: dotted names of the matrices that get LoRA (Hu et al. 2021), for ``lora``.
        rank: LoRA rank r.
        alpha: LoRA alpha; the update is alpha/r B A, with B = 0 at the start.
        seed: of A's initial values.

    Returns:
        The trainable parameters by their name in the UNet, in a fixed order.

    Raises:
        UserError: no matrix is selected, or a selected name is not in the UNet.
    """
    unet.requires_grad_(False).train()  # Opacus looks at layers in training mode only; there is no dropout
    if adapter == "lora":
        _inject_lora(unet, selected, rank, alpha, seed)
    else:
        unet.requires_grad_(True)
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def _inject_lora(unet: "UNet2DConditionModel", selected: list[str], rank: int, alpha: float, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    modules = dict(unet.named_modules())
    missing = [name for name in selected if name not in modules]
    if missing or not selected:
        raise UserError("selection", missing or selected, "must name matrices of the UNet: run select-matrices again")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=selected)
    with torch.random.fork_rng():
        torch.manual_seed(child_seed(seed, "lora"))
        inject_adapter_in_model(config, unet)


def load_weights(parameters: dict[str, torch.nn.Parameter], weights: dict[str, torch.Tensor]) -> None:
    """Copy trained weights into the parameters that `add_adapter` returned.

    Raises:
        UserError: the names differ: the weights are of another selection or method.
    """
    if set(parameters) != set(weights):
        differing = sorted(set(parameters) ^ set(weights))[0]
        raise UserError("weights", differing, "is not in both weights and selection: they are of different runs")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
