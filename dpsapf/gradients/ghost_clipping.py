"""Clipped gradient sums from backward passes, without per-image gradients of large weight matrices.

A backward pass hands over each layer's input a and output gradient g; image norms come from them by ghost norms (Li et
al. 2022, arXiv 2110.05679), and so does the clipped sum, as one contraction sum_b c_b g_b^T a_b per layer (book-keeping:
Bu, Wang, Zha, Karypis 2023, arXiv 2210.00038). Where the images' gradients are smaller than a and g, as an adapter's are, they
are made at once and kept instead: norms and sum are then those of the very same numbers.

Book-keeping keeps one or the other of every layer until the norms are known: one pass. Under gradient checkpointing, whose
purpose is not to have all of them at once, a first pass can take the norms and a second the sums, with nothing kept in
between. The second pass is not Li et al.'s, of the re-weighted loss: there 0 times a broken image's gradient is not 0, and
with bf16 activations the sum would agree with the norms to 8 bits only. Contracted as above, both ways give the same numbers.

What is left to trust: that rounding errors of a contraction scatter. It adds an image's tokens in fp32, too, and `squared_norms`
lets their norms add up to 2^9 times the bound at most. Of 64 images of 64 tokens that cancel so far, the errors move the sum by
2^-17 of the bound; if all of them went one way, it could be more than the margin. Sums of images' gradients need no such trust.
"""

import typing
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

from dpsapf.gradients.ghost_norms import (
    MATRIX_LAYERS,
    NORM_LAYERS,
    LayerHooks,
    chunks,
    image_gradients,
    padded,
    patches,
    squared_norms,
    tokens,
)
from dpsapf.gradients.products import product_with_fp32
from dpsapf.privacy.clipping import TOGETHER, Clipping, added_up, clip_factors, weighted_sum, with_zeros
from dpsapf.support.errors import UserError

Parameter = tuple[str, str]  # layer, and weight or bias
Kept = tuple[torch.Tensor, ...]  # inputs and output gradients of a matrix, or a parameter's image gradients: whichever is smaller
Compute = Callable[[torch.nn.Module, Kept], typing.Any]
Each = Callable[[Compute], list]  # computes something of every parameter's layer and kept tensors, in order


class GhostClipping:
    """Hooks on a model that give the clipped gradient sum of some of its parameters.

    All of the model's parameters are frozen, so that autograd makes no weight gradient; the caller sets ``grad``.

    Attributes:
        model: what to call; the model that was passed.

    Args:
        model: its forward pass treats rows independently and calls each trained layer once.
        parameters: what is trained, by name in the model, in a fixed order.
        two_passes: run two backward passes, and keep nothing of all layers at once.

    Raises:
        UserError: a parameter is not in the model under its name, is shared by two layers, or is not the
            weight or bias of a ``Linear``, ``Conv2d``, ``GroupNorm`` or ``LayerNorm``.
    """

    def __init__(self, model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], *, two_passes: bool = False) -> None:
        _check(model, parameters)
        self._two_passes = two_passes
        self._parameters: dict[Parameter, None] = dict.fromkeys(tuple(name.rpartition(".")[::2]) for name in parameters)
        self._compute: Compute | None = None  # what the backward pass that is under way computes
        self._multiplicity = 1  # of its losses
        self._computed: dict[Parameter, typing.Any] = {}
        layers = list(dict.fromkeys(layer for layer, _ in self._parameters))
        self._hooks = LayerHooks(model, layers, MATRIX_LAYERS + NORM_LAYERS, self._receive)
        self.model = model.requires_grad_(False)

    def clipped_sum(
        self,
        losses: torch.Tensor,
        bound: float,
        clipping: Clipping,
        multiplicity: int = 1,
        resting: frozenset[int] = frozenset(),
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Clip each image's gradient over all parameters together, and sum over images.

        Args:
            losses: of each row [B K], with their graph, which is used up.
            bound: C > 0.
            clipping: see `dpsapf.privacy.clipping.clip_factors`.
            multiplicity: K; an image's K adjacent rows are averaged before clipping.
            resting: positions of parameters whose gradients count for 0, in norms and sums.

        Returns:
            Per parameter the sum [*shape] of clipped gradients, see `dpsapf.privacy.clipping.added_up`, and the norms [B]
            before clipping. Adding or removing one image changes the sums, taken together, by an L2 norm of at most C. An
            image whose norm is not finite contributes 0.

        Raises:
            UserError: a layer got no gradient, or is called twice.
        """
        self._multiplicity = multiplicity
        norms, sums = self._passes(losses)
        by_parameter = norms(lambda layer, kept: _squared_norms(layer, kept, multiplicity))
        for position in resting:
            by_parameter[position].zero_()
        squared = torch.stack(by_parameter).sum(0)
        weights = clip_factors(squared, bound, clipping)
        usable = torch.isfinite(squared)
        clipped = sums(lambda layer, kept: _sum(layer, kept, weights, usable, multiplicity))
        for position in resting:
            clipped[position].zero_()
        return clipped, squared.sqrt()

    def close(self) -> None:
        """Remove the hooks."""
        self._hooks.close()

    def _passes(self, losses: torch.Tensor) -> tuple[Each, Each]:
        """Return what goes over the parameters a first and a second time."""
        if self._two_passes:
            return partial(self._backward, losses, retain_graph=True), partial(self._backward, losses)
        kept = self._backward(losses, lambda layer, kept: kept)
        layers = [self._hooks.layers[name] for name, _ in self._parameters]
        return (
            lambda compute: [compute(layer, part) for layer, part in zip(layers, kept, strict=True)],
            lambda compute: [compute(layer, kept.pop(0)) for layer in layers],
        )

    def _backward(self, losses: torch.Tensor, compute: Compute, *, retain_graph: bool = False) -> list:
        """Run the backward pass of the sum of losses, and compute something of each parameter as soon as it is reached."""
        self._compute = compute
        self._hooks.forget()
        losses.sum().backward(retain_graph=retain_graph)
        self._hooks.finish()
        return [self._computed.pop(parameter) for parameter in self._parameters]

    def _receive(self, name: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        layer = self._hooks.layers[name]
        for kind in ("weight", "bias"):
            if (name, kind) in self._parameters:
                kept = (inputs, gradients)
                if not self._pair_is_smaller(layer, kind, inputs, gradients):
                    kept = (image_gradients(layer, kind, inputs, gradients, self._multiplicity),)
                self._computed[name, kind] = self._compute(layer, kept)

    def _pair_is_smaller(self, layer: torch.nn.Module, kind: str, inputs: torch.Tensor, gradients: torch.Tensor) -> bool:
        """Compare the bytes of a matrix' inputs and output gradients with those of its images' gradients in fp32."""
        if kind == "bias" or not isinstance(layer, MATRIX_LAYERS):
            return False
        images = len(inputs) // self._multiplicity
        return inputs.nbytes + gradients.nbytes < images * layer.weight.numel() * torch.float32.itemsize


def _squared_norms(layer: torch.nn.Module, kept: Kept, multiplicity: int) -> torch.Tensor:
    """Return the squared norm of each image's mean gradient of one parameter, fp32 [B]."""
    if len(kept) == 2:
        return squared_norms(layer, *kept, multiplicity, contracted=True)
    return kept[0].flatten(1).square().sum(1)


def _sum(layer: torch.nn.Module, kept: Kept, weights: torch.Tensor, usable: torch.Tensor, multiplicity: int) -> torch.Tensor:
    """Return the weighted sum of the usable images' gradients of one parameter [*shape]; the others' weights are 0."""
    with torch.autocast(weights.device.type, enabled=False):
        if len(kept) == 1:
            return weighted_sum(weights, with_zeros(kept[0], usable))
        rows, weights = usable.repeat_interleave(multiplicity), (weights / multiplicity).repeat_interleave(multiplicity)
        values = (with_zeros(values, rows) for values in kept)
        return added_up(partial(_weighted_sum, layer), TOGETHER * multiplicity, *values, weights)


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
        return product_with_fp32(scaled.flatten(0, -2).T, inputs.flatten(0, -2))
    if inputs.is_cuda and inputs.dtype == torch.bfloat16:
        return _weighted_sum_of_patches(layer, inputs, scaled)
    values = padded(layer, inputs.float())
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=True, deterministic=cudnn.deterministic, allow_tf32=False):  # TF32 would not agree with the norms
        return torch.nn.grad.conv2d_weight(
            values, layer.weight.shape, scaled, layer.stride, dilation=layer.dilation, groups=layer.groups
        )


def _weighted_sum_of_patches(layer: torch.nn.Conv2d, inputs: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
    """Contract a convolution's sum as a product of matrices, all rows' positions being tokens of one."""
    total = torch.zeros(layer.weight.shape, device=inputs.device)
    for a, g in chunks(layer, inputs, scaled, 1):
        rows = len(a)  # as the multiplicity: all are tokens of one image
        total += product_with_fp32(tokens(layer, g, rows), tokens(layer, patches(layer, a), rows).mT).reshape(total.shape)
    return total
