"""The precision of a denoiser's passes: one setting for scoring, training and sampling."""

import functools
import typing

from dpsapf.experiment.methods import Precision

if typing.TYPE_CHECKING:
    import torch


def in_precision(denoiser: "torch.nn.Module", precision: Precision) -> "torch.nn.Module":
    """Let a denoiser multiply in bf16; what is trained and what it returns stay fp32, and so do clipping, sums and noise.

    Weights that nothing trains are kept in bf16, which autocast would round them to in each pass, and so are the
    normalisations', which then take bf16 and give it. Call it when it is known what is trained.

    Args:
        denoiser: changed in place.
        precision: ``fp32`` changes nothing.
    """
    if precision == "fp32":
        return denoiser
    import torch

    _round_frozen(denoiser)
    forward = denoiser.forward

    @functools.wraps(forward)
    def rounded(*arguments: object, **named: object) -> object:
        device = next(denoiser.parameters()).device.type
        with torch.autocast(device, torch.bfloat16):
            return _in_fp32(forward(*arguments, **named))

    denoiser.forward = rounded
    return denoiser


def _round_frozen(denoiser: "torch.nn.Module") -> None:
    """Round layers of which nothing is trained; not the first, whose type diffusers gives to latents and schedulers."""
    import torch

    matrices, normalisations = (torch.nn.Linear, torch.nn.Conv2d), (torch.nn.GroupNorm, torch.nn.LayerNorm)
    layers = [module for module in denoiser.modules() if isinstance(module, matrices + normalisations)]
    first = next(denoiser.parameters())
    for layer in layers:
        own = list(layer.parameters())
        if not own or any(parameter is first or parameter.requires_grad for parameter in own):
            continue
        layer.to(torch.bfloat16)
        if isinstance(layer, normalisations):
            layer.forward = functools.partial(_normalised, layer.forward)


def _normalised(forward: "typing.Callable[[torch.Tensor], torch.Tensor]", inputs: "torch.Tensor") -> "torch.Tensor":
    """Normalise in bf16, with sums in fp32; autocast would make its inputs and results fp32."""
    import torch

    with torch.autocast(inputs.device.type, enabled=False):
        return forward(inputs.to(torch.bfloat16))


def _in_fp32(output: typing.Any) -> typing.Any:  # noqa: ANN401 - a tensor, or tensors in what diffusers returns
    if isinstance(output, tuple | list):
        return type(output)(map(_in_fp32, output))
    if hasattr(output, "sample"):
        output.sample = _in_fp32(output.sample)
        return output
    return output.float()
