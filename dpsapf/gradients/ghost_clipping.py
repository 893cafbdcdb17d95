"""Clipped gradient sums from one backward pass, without per-image gradients of the weight matrices.

Book-keeping (Bu, Wang, Zha, Karypis 2023, arXiv 2210.00038): the backward pass leaves each layer's input a and
output gradient g; image norms come from them by ghost norms (Li et al. 2022, arXiv 2110.05679), and so does the
clipped sum, as one contraction sum_b c_b g_b^T a_b per layer.
"""

from collections import Counter

import torch

from dpsapf.gradients.ghost_norms import MATRIX_LAYERS, NORM_LAYERS, LayerHooks, padded, row_gradients, squared_norms
from dpsapf.privacy.clipping import Clipping, clip_factors
from dpsapf.support.errors import UserError


class GhostClipping:
    """Hooks on a model that give the clipped gradient sum of some of its parameters.

    All of the model's parameters are frozen, so that autograd makes no weight gradient; the caller sets ``grad``.

    Attributes:
        model: what to call; the model that was passed.

    Args:
        model: its forward pass treats rows independently and calls each trained layer once.
        parameters: what is trained, by name in the model, in a fixed order.

    Raises:
        UserError: a parameter is not in the model under its name, is shared by two layers, or is not the
            weight or bias of a ``Linear``, ``Conv2d``, ``GroupNorm`` or ``LayerNorm``.
    """

    def __init__(self, model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter]) -> None:
        _check(model, parameters)
        self._parameters = dict.fromkeys(tuple(name.rpartition(".")[::2]) for name in parameters)  # (layer, kind)
        self._kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # inputs and output gradients of matrix layers
        self._rows: dict[tuple[str, str], torch.Tensor] = {}  # row gradients of everything else
        layers = list(dict.fromkeys(layer for layer, _ in self._parameters))
        self._hooks = LayerHooks(model, layers, MATRIX_LAYERS + NORM_LAYERS, self._receive)
        self.model = model.requires_grad_(False)

    def clipped_sum(self, bound: float, clipping: Clipping, multiplicity: int = 1) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Clip each image's gradient over all parameters together, and sum over images; after the backward pass.

        The backward pass is that of the sum of row losses. What was kept of it is forgotten.

        Args:
            bound: C > 0.
            clipping: see `dpsapf.privacy.clipping.clip_factors`.
            multiplicity: K; an image's K adjacent rows are averaged before clipping.

        Returns:
            Per parameter the sum [*shape] of clipped gradients, fp32, and the norms [B] before clipping. Adding
            or removing one image changes the sums, taken together, by an L2 norm of at most C. An image
            whose norm is not finite contributes 0.

        Raises:
            UserError: a layer got no gradient.
        """
        self._hooks.finish()
        squared = torch.stack([self._squared_norms(*parameter, multiplicity) for parameter in self._parameters]).sum(0)
        weights = (clip_factors(squared, bound, clipping) / multiplicity).repeat_interleave(multiplicity)
        usable = torch.isfinite(squared).repeat_interleave(multiplicity)
        rows = slice(None) if usable.all() else usable
        with torch.autocast(squared.device.type, enabled=False):
            sums = [self._sum(*parameter, weights[rows], rows) for parameter in self._parameters]
        return sums, squared.sqrt()

    def close(self) -> None:
        """Remove the hooks and forget what they kept."""
        self._hooks.close()
        self._kept.clear()
        self._rows.clear()

    def _receive(self, name: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        layer = self._hooks.layers[name]
        for kind in ("weight", "bias"):
            if (name, kind) not in self._parameters:
                continue
            if self._is_matrix(name, kind):
                self._kept[name] = inputs, gradients
            else:
                self._rows[name, kind] = row_gradients(layer, kind, inputs, gradients)

    def _is_matrix(self, name: str, kind: str) -> bool:
        return kind == "weight" and isinstance(self._hooks.layers[name], MATRIX_LAYERS)

    def _squared_norms(self, name: str, kind: str, multiplicity: int) -> torch.Tensor:
        if self._is_matrix(name, kind):
            return squared_norms(self._hooks.layers[name], *self._kept[name], multiplicity)
        images = self._rows[name, kind].unflatten(0, (-1, multiplicity)).mean(1)
        return images.flatten(1).square().sum(1)

    def _sum(self, name: str, kind: str, weights: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
        if self._is_matrix(name, kind):
            inputs, gradients = self._kept.pop(name)
            return _weighted_sum(self._hooks.layers[name], inputs[rows], gradients[rows], weights)
        return torch.tensordot(weights, self._rows.pop((name, kind))[rows], dims=1)


def _check(model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter]) -> None:
    known = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(map(id, known.values()))
    for name, parameter in parameters.items():
        if known.get(name) is not parameter or name.rpartition(".")[2] not in ("weight", "bias"):
            raise UserError("parameter", name, "is not the weight or bias of a layer of the model")
        if uses[id(parameter)] > 1:
            raise UserError("parameter", name, "is shared by two layers: per-image norms need one call per parameter")


def _weighted_sum(layer: torch.nn.Module, inputs: torch.Tensor, gradients: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Contract over rows and tokens to sum_r w_r g_r^T a_r, fp32 in the weight's shape."""
    scaled = gradients.float() * weights.reshape(-1, *[1] * (gradients.dim() - 1))
    if isinstance(layer, torch.nn.Linear):
        return scaled.flatten(0, -2).T @ inputs.float().flatten(0, -2)
    values = padded(layer, inputs.float())
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=True, deterministic=cudnn.deterministic, allow_tf32=False):  # TF32 would not agree with the norms
        return torch.nn.grad.conv2d_weight(
            values, layer.weight.shape, scaled, layer.stride, dilation=layer.dilation, groups=layer.groups
        )
