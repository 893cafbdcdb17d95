"""Clipped sums of per-image gradients: how, for each kind of trained parameter."""

import typing

import torch

from dpsapf.experiment.methods import Adapter
from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.gradients.ghost_norms import Tap
from dpsapf.privacy.clipping import Clipping, clipped_sum

FUNCTIONAL = ("dora", "loha", "lokr")  # adapters whose parameters sit in no layer of their own


class PerImageGradients(typing.Protocol):
    """Hooks on a model that give the clipped gradient sum of its trained parameters.

    Attributes:
        model: what the loss calls.
    """

    model: torch.nn.Module

    def clipped_sum(self, bound: float, clipping: Clipping, multiplicity: int = 1) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Clip and sum after the backward pass of a sum of row losses; forget what was kept of it.

        Args:
            bound: C > 0, on one image's gradient over all parameters together.
            clipping: see `dpsapf.privacy.clipping.clip_factors`.
            multiplicity: K; an image's K adjacent rows are averaged before clipping.

        Returns:
            Per parameter the sum over images, fp32, and the norms [B] before clipping.
        """


def per_image_gradients(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], adapter: Adapter | None
) -> PerImageGradients:
    """Choose how: ghost clipping for weights and for adapters that are made of layers, functional for the others."""
    return (FunctionalGradients if adapter in FUNCTIONAL else GhostClipping)(model, parameters)


def averaged(rows: torch.Tensor, multiplicity: int) -> torch.Tensor:
    """Average the K adjacent rows of each image: [B K, *shape] to fp32 [B, *shape]."""
    return rows.float().unflatten(0, (-1, multiplicity)).mean(1)


class FunctionalGradients:
    """Per-image gradients of adapters whose parameters sit in no layer of their own: DoRA, LoHa, LoKr on linear layers.

    An adapted layer is linear in its input, layer(x) = x W(theta)^T + b, and image b's gradient with respect to W is
    G_b = sum_t g_bt a_bt^T. So theta's gradient is the pull-back of G_b through theta -> layer(identity), image by image.
    """

    def __init__(self, model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter]) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.model = model
        self._names = list(parameters)
        self._layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
        self._gradients: dict[str, torch.Tensor] = {}  # of each layer's W^T per row, [rows, I, O]
        self._handles = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]

    def clipped_sum(self, bound: float, clipping: Clipping, multiplicity: int = 1) -> tuple[list[torch.Tensor], torch.Tensor]:
        """See `PerImageGradients`."""
        by_name: dict[str, torch.Tensor] = {}
        for name, layer in self._layers.items():
            images = averaged(self._gradients.pop(name), multiplicity)
            by_name |= {f"{name}.{key}": value for key, value in _pulled_back(layer, images).items()}
        self.model.zero_grad()
        return clipped_sum([by_name[name] for name in self._names], bound, clipping)

    def _hook(self, name: str):  # noqa: ANN202 - torch's hook signature
        def receive(kept: torch.Tensor, gradient: torch.Tensor) -> None:
            self._gradients[name] = _products(kept, gradient)

        def forward_hook(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            return Tap.apply(output, inputs[0].detach(), receive) if output.requires_grad else None

        return forward_hook


def _products(inputs: torch.Tensor, output_gradients: torch.Tensor) -> torch.Tensor:
    """Return sum_t a_t g_t^T of each row, fp32 [rows, I, O]."""
    a, g = (value.float().reshape(len(value), -1, value.shape[-1]) for value in (inputs, output_gradients))
    return a.mT @ g


def _pulled_back(layer: torch.nn.Module, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pull each image's [I, O] back to the layer's trained parameters; one by one, since LoHa's autograd knows no vmap."""
    parameters = {name: value for name, value in layer.named_parameters() if value.requires_grad}
    matrix = layer.forward(torch.eye(gradients.shape[1], device=gradients.device))
    images = [torch.autograd.grad(matrix, list(parameters.values()), image, retain_graph=True) for image in gradients]
    return {name: torch.stack(parts) for name, parts in zip(parameters, zip(*images, strict=True), strict=True)}
