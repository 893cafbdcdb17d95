"""A tiny UNet, objective and latents for tests that need a model."""

import hashlib
import json

import torch
from safetensors.torch import save_file

from dpsapf.experiment.records import ModelRecord
from dpsapf.public_models.families.stable_diffusion import NoiseObjective, StableDiffusion
from dpsapf.public_models.latents import Latents
from dpsapf.support.checked import replace
from dpsapf.support.records import as_json


def tiny_unet(seed=0):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        ).eval()


def tiny_record():
    return ModelRecord(
        name="tiny",
        family="stable-diffusion",
        path="x",
        vae_path="x",
        resolution=32,
        licence="x",
        sha256=None,
        denoiser_parameters=1,
        candidates=1,
        provenance={},
    )


def write_tiny_model(folder):
    """Write the tiny UNet as a folder, for whoever reads what parameters it has; returns its record."""
    (folder / "unet").mkdir(parents=True)
    save_file(tiny_unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    return replace(tiny_record(), path=str(folder))


def tiny_scheduler():
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)


def tiny_objective():
    return NoiseObjective(tiny_scheduler())


def tiny_vae():
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 4),
            latent_channels=4,
            norm_num_groups=2,
            sample_size=8,
        ).eval()


class TinyModel(StableDiffusion):
    """The tiny parts as a public model, whatever its record says."""

    def denoiser(self, device="cpu"):
        return tiny_unet().to(device)

    def vae(self, device="cpu"):
        return tiny_vae().to(device)

    def scheduler(self, sampler):
        return tiny_scheduler()


def tiny_latents(images=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Latents(
        mean=torch.randn(images, 4, 4, 4, generator=generator),
        std=torch.full((images, 4, 4, 4), 0.01),
        labels=torch.arange(images) % 2,
        prompt_embeddings=torch.randn(2, 3, 8, generator=generator),
    )


def digest_of(record):
    """SHA-256 of the file that `write_record` makes of a record."""
    return hashlib.sha256((json.dumps(as_json(record), indent=2) + "\n").encode()).hexdigest()


def write_latents(folder, latents, dataset_id="d" * 64, model=None):
    """Write latents.safetensors and prompts.safetensors, without rounding, as made with the model of `tiny_record`."""
    origin = {"dataset_id": dataset_id, "model": model or digest_of(tiny_record())}
    arrays = {"mean": latents.mean, "std": latents.std, "labels": latents.labels}
    users = {} if latents.users is None else {"users": latents.users}
    save_file(arrays | users, folder / "latents.safetensors", origin)
    prompts = {"classes": latents.prompt_embeddings, "null": torch.zeros_like(latents.prompt_embeddings[0])}
    save_file(prompts, folder / "prompts.safetensors", origin)


def candidates(unet):
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    return [name for name, _ in unet.named_modules() if name.endswith(ends)]
