"""Clipped sums of per-image gradients: how, for each kind of trained parameter."""

import typing

import torch

from dpsapf.experiment.methods import Adapter
from dpsapf.gradients.adapter_rows import adapter_layers, adapter_rows, check_base
from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.gradients.ghost_norms import LayerHooks
from dpsapf.privacy.clipping import Clipping, clipped_sum

WITHOUT_LAYERS = ("dora", "loha", "lokr")  # adapters whose parameters sit in no layer of their own


class PerImageGradients(typing.Protocol):
    """Hooks on a model that give the clipped gradient sum of its trained parameters.

    Attributes:
        model: what the loss calls.
    """

    model: torch.nn.Module

    def clipped_sum(
        self,
        losses: torch.Tensor,
        bound: float,
        clipping: Clipping,
        multiplicity: int = 1,
        resting: frozenset[int] = frozenset(),
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Run the backward pass of row losses, clip and sum; nothing is kept of it.

        Args:
            losses: of each row [B K], with their graph, which is used up.
            bound: C > 0, on one image's gradient over all parameters together.
            clipping: see `dpsapf.privacy.clipping.clip_factors`.
            multiplicity: K; an image's K adjacent rows are averaged before clipping.
            resting: positions of parameters whose gradients count for 0, in norms and sums.

        Returns:
            Per parameter the sum over images, see `dpsapf.privacy.clipping.added_up`, and the norms [B] before clipping.
        """


def per_image_gradients(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], adapter: Adapter | None
) -> PerImageGradients:
    """Choose how: ghost clipping for weights and for adapters that are made of layers, row gradients for the others.

    Ghost clipping of weights takes two passes if the model's gradient checkpointing is on. One pass over an adapter keeps few
    of the activations: a second pass would save a fifth of the memory for two thirds more time.
    """
    if adapter in WITHOUT_LAYERS:
        return AdapterGradients(model, parameters)
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())  # diffusers' flag
    return GhostClipping(model, parameters, two_passes=checkpointed and adapter is None)


def averaged(rows: torch.Tensor, multiplicity: int) -> torch.Tensor:
    """Average the K adjacent rows of each image: [B K, *shape] to fp32 [B, *shape]."""
    return rows.float().unflatten(0, (-1, multiplicity)).mean(1)


class AdapterGradients:
    """Per-image gradients of adapters whose parameters sit in no layer of their own: DoRA, LoHa, LoKr.

    The adapters are small, so the gradients of rows are kept. All of the model's parameters are frozen, so that autograd
    makes no gradient of its own; the caller sets ``grad``.

    Args:
        model: its forward pass treats rows independently and calls each adapted layer once.
        parameters: those of all adapters, by name in the model.

    Raises:
        UserError: an adapter is on a layer that has no closed form, see `dpsapf.gradients.adapter_rows`.
    """

    def __init__(self, model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter]) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._names = list(parameters)
        self._rows: dict[str, torch.Tensor] = {}  # by name of the parameter, [B K, *shape]
        adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
        for name, layer in adapted.items():
            check_base(name, layer)
        self._hooks = LayerHooks(model, list(adapted), tuple(adapter_layers()), self._receive)
        self.model = model.requires_grad_(False)

    def clipped_sum(
        self,
        losses: torch.Tensor,
        bound: float,
        clipping: Clipping,
        multiplicity: int = 1,
        resting: frozenset[int] = frozenset(),
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """See `PerImageGradients`."""
        self._hooks.forget()
        losses.sum().backward()
        self._hooks.finish()
        gradients = [averaged(self._rows.pop(name), multiplicity) for name in self._names]
        for position in resting:
            gradients[position].zero_()
        return clipped_sum(gradients, bound, clipping)

    def _receive(self, name: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        rows = adapter_rows(self._hooks.layers[name], inputs, gradients)
        self._rows |= {f"{name}.{parameter}": value for parameter, value in rows.items()}
