"""Per-image squared gradient norms of layers from one batched backward pass.

For a linear layer with inputs a [B, T, I] and output gradients g [B, T, O], image b's weight gradient
is G_b = sum_t g_bt a_bt^T. Its squared norm needs either G_b itself or the two Gram matrices
(Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679): whichever is cheaper. A convolution
is a linear layer on patches, its output positions being the tokens (Bu et al. 2022, arXiv 2205.10683).
"""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import torch
import torch.nn.functional as F

from dpsapf.gradients.products import CUTS, product
from dpsapf.support.errors import UserError

MATRIX_LAYERS = (torch.nn.Linear, torch.nn.Conv2d)
NORM_LAYERS = (torch.nn.GroupNorm, torch.nn.LayerNorm)
CHUNK_FLOATS = {"cpu": 2**24, "cuda": 2**28}  # images are taken in chunks whose patches and products need about so many numbers
GRAM_ROUNDING = 2 * CUTS * 2**-24  # of two Gram matrices, in fp32 or cut off

Receiver = Callable[[str, torch.Tensor, torch.Tensor], None]


def squared_norms(
    layer: torch.nn.Module,
    inputs: torch.Tensor,
    output_gradients: torch.Tensor,
    multiplicity: int = 1,
    *,
    contracted: bool = False,
) -> torch.Tensor:
    """Return the squared L2 norm of each image's weight gradient, or a little more, fp32 [B].

    Where the tokens' gradients cancel, rounding in the Gram form is relative to l^2, with l = sum_t ||a_t|| ||g_t||, and may
    be more than the norm. A clipped gradient would then exceed the bound, so that form adds `GRAM_ROUNDING` l^2. The other form
    adds it where images' sum is contracted from tokens: tokens that are huge and cancel would round away other images' sum.

    Args:
        layer: a ``Linear`` or ``Conv2d``.
        inputs: a, rows of adjacent pairs of one image, [B K, ..., I] or [B K, I, H, W].
        output_gradients: g of the sum of row losses, [B K, ..., O] or [B K, O, H', W'].
        multiplicity: K; the K gradients of an image are averaged before the norm.
        contracted: the images' sum is contracted from these inputs and output gradients.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        parts = chunks(layer, inputs, output_gradients, multiplicity)
        squared = [_squared_norms(layer, *part, multiplicity, contracted) for part in parts]
    return torch.cat(squared) / multiplicity**2


def chunks(
    layer: torch.nn.Module, inputs: torch.Tensor, output_gradients: torch.Tensor, multiplicity: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Split rows so that the patches and weight gradients of a part's images fit into a workspace."""
    images = len(inputs) // multiplicity
    positions = output_gradients.numel() // len(layer.weight)
    numbers = positions * getattr(layer, "groups", 1) * layer.weight[0].numel() + images * layer.weight.numel()
    chunk = max(1, CHUNK_FLOATS[inputs.device.type] * images // numbers) * multiplicity
    return zip(inputs.split(chunk), output_gradients.split(chunk), strict=True)


def _squared_norms(
    layer: torch.nn.Module, inputs: torch.Tensor, gradients: torch.Tensor, multiplicity: int, contracted: bool = False
) -> torch.Tensor:
    a, g = tokens(layer, patches(layer, inputs), multiplicity), tokens(layer, gradients, multiplicity)
    if gram_is_cheaper(a.shape[3], a.shape[2], g.shape[2]):
        return _from_grams(product(a.mT, a), product(g.mT, g))
    squared = product(g, a.mT).square_().sum((1, 2, 3))  # torch's vector_norm of 1e7 numbers is 4e-4 too small on the CPU
    if contracted:
        squared += _rounding(*(torch.linalg.vector_norm(values, dim=2, dtype=torch.float32) for values in (a, g))).sum(1)
    return squared


def _from_grams(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Bound squared norms [B] from above by the Gram matrices [B, groups, T, T] of inputs and of output gradients.

    Squares below the smallest normal number may be lost, so as much is added to each token's.
    """
    tiny = torch.finfo(a.dtype).tiny
    a_lengths, g_lengths = ((gram.diagonal(dim1=2, dim2=3) + tiny).sqrt() for gram in (a, g))
    lost = tiny * (a_lengths.sum(2).square() + g_lengths.sum(2).square())
    return a.mul_(g).sum((1, 2, 3)) + (_rounding(a_lengths, g_lengths) + lost).sum(1)


def _rounding(a_lengths: torch.Tensor, g_lengths: torch.Tensor) -> torch.Tensor:
    """Return what is added for rounding [B, groups], from the norms [B, groups, T] of inputs and of output gradients."""
    return GRAM_ROUNDING * (a_lengths * g_lengths).sum(2).square()


def tokens(layer: torch.nn.Module, values: torch.Tensor, multiplicity: int) -> torch.Tensor:
    """Arrange rows as [B, groups, features, K tokens]; a view, except for a convolution with K > 1.

    Args:
        layer: a ``Linear`` or ``Conv2d``.
        values: `patches` or output gradients, [B K, ..., features] or [B K, features, ...].
        multiplicity: K.
    """
    images = len(values) // multiplicity
    if isinstance(layer, torch.nn.Linear):
        return values.reshape(images, 1, -1, values.shape[-1]).mT
    by_group = values.flatten(2).reshape(images, multiplicity, layer.groups, -1, values[0, 0].numel())
    return by_group.movedim(1, 3).flatten(3)


def patches(layer: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Unfold a convolution's inputs to [rows, I k k, positions], without a copy for 1x1 kernels; a linear layer's stay."""
    if isinstance(layer, torch.nn.Linear):
        return inputs
    windows = padded(layer, inputs)
    for axis in (0, 1):
        span = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        windows = windows.unfold(2 + axis, span, layer.stride[axis])
    windows = windows[..., :: layer.dilation[0], :: layer.dilation[1]]
    return windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def padded(layer: torch.nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    """Pad as the convolution does, whatever its ``padding`` and ``padding_mode``: [rows, I, H, W] to [rows, I, H+, W+]."""
    sides = [side for axis in (1, 0) for side in _sides(layer, axis)]
    if not any(sides):
        return inputs
    return F.pad(inputs, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def _sides(layer: torch.nn.Conv2d, axis: int) -> tuple[int, int]:
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    return layer.padding[axis], layer.padding[axis]


def gram_is_cheaper(tokens: int, inputs: int, outputs: int) -> bool:
    """Compare multiplications per image: T^2 (I + O + 1) for Gram matrices, (T + 1) I O for the product."""
    return tokens * tokens * (inputs + outputs + 1) < (tokens + 1) * inputs * outputs


def image_gradients(
    layer: torch.nn.Module, kind: str, inputs: torch.Tensor, output_gradients: torch.Tensor, multiplicity: int
) -> torch.Tensor:
    """Return each image's gradient of a layer's weight or bias, fp32 [B, *shape].

    Args:
        layer: a ``Linear``, ``Conv2d``, ``GroupNorm`` or ``LayerNorm``.
        kind: ``weight`` or ``bias``.
        inputs: what the layer was called with, rows of adjacent pairs of one image.
        output_gradients: gradient of the sum of row losses with respect to its output.
        multiplicity: K; the K gradients of an image are averaged.
    """
    if kind == "weight" and isinstance(layer, MATRIX_LAYERS):
        with torch.autocast(inputs.device.type, enabled=False):
            parts = [
                product(tokens(layer, g, multiplicity), tokens(layer, patches(layer, a), multiplicity).mT)
                for a, g in chunks(layer, inputs, output_gradients, multiplicity)
            ]
            images = parts[0] if len(parts) == 1 else torch.cat(parts)
        return images.div_(multiplicity).reshape(-1, *layer.weight.shape)
    rows = _row_gradients(layer, kind, inputs, output_gradients)
    return rows.unflatten(0, (-1, multiplicity)).mean(1)


def _row_gradients(layer: torch.nn.Module, kind: str, inputs: torch.Tensor, output_gradients: torch.Tensor) -> torch.Tensor:
    """Return each row's gradient of a bias or of a normalisation's weight, fp32 [rows, *shape]."""
    values = output_gradients
    if kind == "weight":
        values = values.float() * _normalised(layer, inputs.float())
    if isinstance(layer, torch.nn.Conv2d | torch.nn.GroupNorm):
        return values.reshape(*values.shape[:2], -1).sum(2, dtype=torch.float32)
    return values.reshape(len(values), -1, *getattr(layer, kind).shape).sum(1, dtype=torch.float32)


def _normalised(layer: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, torch.nn.GroupNorm):
        return F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)


class Tap(torch.autograd.Function):
    """The identity, which hands over a kept tensor and the gradient that comes back: ``Tap.apply(output, kept, receive)``.

    The tensor is kept as autograd keeps its own, so that gradient checkpointing recomputes it, too.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        output: torch.Tensor,
        kept: torch.Tensor,
        receive: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        """Return the output; ``receive`` is called with ``kept`` and the output's gradient in the backward pass."""
        ctx.save_for_backward(kept)
        ctx.receive = receive
        return output.view_as(output)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Pass the gradient on."""
        ctx.receive(*ctx.saved_tensors, gradient)
        return gradient, None, None


class LayerHooks:
    """Hooks that hand over layers' inputs and output gradients during a backward pass.

    Gradients reach a layer's output even if nothing before it requires one. Passes without autograd are ignored.

    Args:
        model: holds the layers; its parameters may be frozen.
        names: dotted names of the layers; each is called once per forward pass, with its rows first.
        kinds: the types of layer that are handled.
        receive: is called with name, inputs and output gradient of each layer when that gradient is there.

    Raises:
        UserError: a name is not in the model, or names another type of module; during a backward pass, a
            module gets a second gradient before `finish`.
    """

    def __init__(self, model: torch.nn.Module, names: Sequence[str], kinds: tuple[type, ...], receive: Receiver) -> None:
        self._received: set[str] = set()
        self._receive = receive
        modules = dict(model.named_modules())
        self.layers = {name: _checked(name, modules.get(name), kinds) for name in names}
        self._handles = [layer.register_forward_hook(self._hook(name)) for name, layer in self.layers.items()]

    def forget(self) -> None:
        """Start anew after a backward pass that did not come to its end."""
        self._received.clear()

    def finish(self) -> None:
        """Allow the next forward pass.

        Raises:
            UserError: a layer got no gradient.
        """
        for name in self.layers:
            if name not in self._received:
                raise UserError("module", name, "got no gradient: run a backward pass of a loss that depends on it first")
        self._received.clear()

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str):  # noqa: ANN202 - torch's hook signature
        def forward_hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if not torch.is_grad_enabled():
                return None
            if not output.requires_grad:
                output.requires_grad_()
            kept = inputs[0].detach()
            if isinstance(module, MATRIX_LAYERS):
                kept = kept.to(output.dtype)  # under autocast that is what was multiplied
            return Tap.apply(output, kept, lambda *kept: self._hand_over(name, *kept))

        return forward_hook

    def _hand_over(self, name: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        if name in self._received:
            raise UserError("module", name, "is called twice before its norms are taken: they need one call per pass")
        self._received.add(name)
        self._receive(name, inputs, gradients)


def _checked(name: str, layer: torch.nn.Module | None, kinds: tuple[type, ...]) -> torch.nn.Module:
    """Return the layer; subclasses are refused, since their forward pass may differ."""
    if type(layer) not in kinds:
        found = "not in the model" if layer is None else type(layer).__name__
        raise UserError("module", name, f"is {found}: per-image norms are known for {', '.join(kind.__name__ for kind in kinds)}")
    return layer


class GhostNorms:
    """Collect squared gradient norms of named layers' weights during a backward pass.

    Args:
        model: holds the layers; everything in it may be frozen.
        names: dotted names of ``Linear`` or ``Conv2d`` modules, M of them; each is called once per forward pass.
        multiplicity: K, adjacent rows that are averaged into one image.

    Raises:
        UserError: see `LayerHooks`.
    """

    def __init__(self, model: torch.nn.Module, names: list[str], multiplicity: int = 1) -> None:
        self._multiplicity = multiplicity
        self._squared: dict[str, torch.Tensor] = {}
        self._hooks = LayerHooks(model, names, MATRIX_LAYERS, self._measure)

    def __enter__(self) -> "GhostNorms":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hooks.close()
        self._squared.clear()

    def forget(self) -> None:
        """Start anew after a backward pass that did not come to its end."""
        self._hooks.forget()

    def take(self) -> torch.Tensor:
        """Return the squared norms of the last backward pass, fp32 [B, M] in the order of ``names``, and forget them.

        Raises:
            UserError: a layer got no gradient.
        """
        self._hooks.finish()
        return torch.stack([self._squared.pop(name) for name in self._hooks.layers], dim=1)

    def _measure(self, name: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        self._squared[name] = squared_norms(self._hooks.layers[name], inputs, gradients, self._multiplicity)
