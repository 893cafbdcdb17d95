"""The precision of a denoiser's passes: one setting for scoring, training and sampling."""

import functools
import typing

from dpsapf.experiment.methods import Precision

if typing.TYPE_CHECKING:
    import torch


def in_precision(denoiser: "torch.nn.Module", precision: Precision) -> "torch.nn.Module":
    """Let a denoiser multiply in bf16; parameters and what it returns stay fp32, and so do norms, clipping, sums and noise.

    Args:
        denoiser: changed in place.
        precision: ``fp32`` changes nothing.
    """
    if precision == "fp32":
        return denoiser
    import torch

    forward = denoiser.forward

    @functools.wraps(forward)
    def rounded(*arguments: object, **named: object) -> object:
        device = next(denoiser.parameters()).device.type
        with torch.autocast(device, torch.bfloat16):
            return _in_fp32(forward(*arguments, **named))

    denoiser.forward = rounded
    return denoiser


def _in_fp32(output: typing.Any) -> typing.Any:  # noqa: ANN401 - a tensor, or tensors in what diffusers returns
    if isinstance(output, tuple | list):
        return type(output)(map(_in_fp32, output))
    if hasattr(output, "sample"):
        output.sample = _in_fp32(output.sample)
        return output
    return output.float()
