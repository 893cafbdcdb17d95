"""The only place where privacy noise is drawn."""

import torch


def add_gaussian_noise(
    value: torch.Tensor, noise_multiplier: float, sensitivity: float, generator: torch.Generator
) -> torch.Tensor:
    """Release a sum by the Gaussian mechanism.

    Args:
        value: a sum over images, any shape, in which one image contributes an L2 norm of at most ``sensitivity``.
            A release over several tensors is private as a whole if their joint sensitivity is given for each.
        noise_multiplier: sigma > 0.
        sensitivity: L2 sensitivity under adding or removing one image, > 0.
        generator: source of the noise, on the device of ``value``; it must be used for nothing else.

    Returns:
        ``value + N(0, (noise_multiplier * sensitivity)^2 I)``.
    """
    noise = torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)
    return value + noise_multiplier * sensitivity * noise
