"""Operations of public models' architectures and of classifiers, counted by torch without weights: ``dpsapf/experiment/*.json``.

``python -m dpsapf.bench.work`` counts again. Jobs' times and a study's cost are estimated from them (`dpsapf.experiment.work`).
"""

import dataclasses
import json
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpsapf.experiment.work import CLASSIFIERS_FILE, CLASSIFIERS_SIDE, FILE, Work
from dpsapf.support.files import write_text

CROSS = {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "layers_per_block": 2}
CROSS |= {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "block_out_channels": (320, 640, 1280, 1280)}
WIDE_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
WIDE_VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
SD_2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
Z_IMAGE = {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560}
TOKENS = {"clip": 77, "z-image": 32}  # a short caption; Z-Image fills up to a multiple of 32
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Latents [1, C, h, w], a timestep, embeddings [1, L, D]."""


def architectures() -> dict[str, Work]:
    """Count every architecture that config/public_models.yaml names."""
    from dpsapf.pretraining.architecture import MAX_TOKENS, TEXT_WIDTH, build_unet, build_vae

    return {
        "public-mini": counted(build_unet, build_vae, _denoised, 32, MAX_TOKENS, TEXT_WIDTH),
        "sd-1": counted(lambda: _unet(cross_attention_dim=768, attention_head_dim=8), _vae, _denoised, 256, TOKENS["clip"], 768),
        "sd-2": counted(lambda: _unet(**SD_2), _vae, _denoised, 256, TOKENS["clip"], 1024),
        "z-image": counted(_transformer, lambda: _vae(16), _transformed, 256, TOKENS["z-image"], 2560),
    }


def _unet(**shape: object) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(in_channels=4, out_channels=4, sample_size=64, norm_num_groups=32, **CROSS, **shape)


def _transformer() -> torch.nn.Module:
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(**Z_IMAGE)


def _vae(channels: int = 4) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**WIDE_VAE, latent_channels=channels)


def _denoised(network: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    return network(*inputs).sample


def _transformed(network: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    latents, timestep, embeddings = inputs
    return network([latents[0].unsqueeze(1)], timestep, [embeddings[0]], return_dict=False)[0][0]


def counted(
    build: Callable[[], torch.nn.Module],
    build_vae: Callable[[], torch.nn.Module],
    run: Callable[[torch.nn.Module, Inputs], torch.Tensor],
    resolution: int,
    tokens: int,
    width: int,
) -> Work:
    """Count the operations of one image.

    Args:
        build: builds the denoiser.
        build_vae: builds the autoencoder.
        run: gives the denoiser's prediction.
        resolution: side of the image [pixels].
        tokens: length of a prompt.
        width: of its embeddings.
    """
    with torch.device("meta"):
        network, autoencoder, pixels = build(), build_vae(), torch.zeros(1, 3, resolution, resolution)
        latents = autoencoder.encode(pixels).latent_dist.mean.detach()
        inputs = latents, torch.zeros(1), torch.zeros(1, tokens, width)
        through = latents.clone().requires_grad_(), *inputs[1:]
        return Work(
            resolution=resolution,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            forward=_operations(lambda: run(network, inputs)),
            frozen=_operations(lambda: run(network.requires_grad_(False), through).sum().backward()),
            full=_operations(lambda: run(network.requires_grad_(True), inputs).sum().backward()),
            encode=_operations(lambda: autoencoder.encode(pixels)),
            decode=_operations(lambda: autoencoder.decode(latents)),
        )


def trained_classifiers() -> dict[str, float]:
    """Count what one image costs each classifier while it is trained [TFLOP].

    That is three times its forward pass: torch's counter takes the backward pass of grouped convolutions for that of full ones.
    """
    from dpsapf.evaluation.classifiers import CLASSIFIERS

    found = {}
    for name, build in CLASSIFIERS.items():
        with torch.device("meta"):
            network, pixels = build(10).eval(), torch.zeros(1, 3, CLASSIFIERS_SIDE, CLASSIFIERS_SIDE)
            found[name] = float(f"{3 * _operations(lambda network=network, pixels=pixels: network(pixels)):.6g}")
    return found


def _operations(call: Callable[[], object]) -> float:
    """Count in TFLOP, to six digits."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(f"{counter.get_total_flops() / 1e12:.6g}")


if __name__ == "__main__":
    write_text(FILE, json.dumps({name: dataclasses.asdict(work) for name, work in architectures().items()}, indent=2) + "\n")
    write_text(CLASSIFIERS_FILE, json.dumps(trained_classifiers(), indent=2) + "\n")
