"""Stable Diffusion 1 and 2 and their fine-tunes: a UNet with cross-attention, a CLIP text encoder, noise or velocity."""

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpsapf.experiment.methods import Sampler
from dpsapf.public_models.candidates import matrix_table
from dpsapf.public_models.check import check_fits, check_resolution, check_vocabulary, read_config
from dpsapf.public_models.families.family import Configs, Family, Objective
from dpsapf.public_models.load import folder_of, load_part, tokenise
from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import DDIMScheduler, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from dpsapf.public_models.latents import Pairs

BLOCKS = re.compile(r"(down_blocks|up_blocks)\.\d+|\w+")
INPAINTING_CHANNELS = 9  # latent, masked latent and mask
PIPELINE_MULTIPLE = 8  # what diffusers' pipeline divides sides by, whatever the VAE
SCHEDULERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
UNCONDITIONED = (  # further inputs of UNets that no row of a batch has
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)


@dataclass(frozen=True)
class NoiseObjective(Objective):
    """The usual diffusion loss (Ho et al. 2020, eq. 14): the target is the noise, or the velocity (Salimans, Ho 2022, app. D).

    Attributes:
        scheduler: with the noise schedule and the prediction type that the model was published with.
    """

    scheduler: "DDIMScheduler"

    @property
    def timesteps(self) -> int:
        """Number of timesteps that the model was trained at."""
        return self.scheduler.config.num_train_timesteps

    def predictions(self, denoiser: "torch.nn.Module", pairs: "Pairs") -> "torch.Tensor":
        """See `Objective`."""
        noisy = self.scheduler.add_noise(pairs.latents, pairs.noise, pairs.timesteps)
        return denoiser(noisy, pairs.timesteps, pairs.embeddings, return_dict=False)[0].float()

    def targets(self, pairs: "Pairs") -> "torch.Tensor":
        """See `Objective`."""
        if self.scheduler.config.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(pairs.latents, pairs.noise, pairs.timesteps)
        return pairs.noise


class StableDiffusion(Family):
    """Stable Diffusion v1-5, 2-1-base, their fine-tunes, and ``public-mini``."""

    name = "stable-diffusion"
    pipeline = "StableDiffusionPipeline"
    denoiser_part = "unet"
    classes: typing.ClassVar = {
        "unet": ("UNet2DConditionModel",),
        "scheduler": SCHEDULERS,
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }
    settings: typing.ClassVar = {
        "unet": dict.fromkeys(UNCONDITIONED, (None,)),
        "scheduler": {"prediction_type": (None, "epsilon", "v_prediction"), "use_flow_sigmas": (None, False)},
        "vae": {"shift_factor": (None, 0), "latents_mean": (None,), "latents_std": (None,)},  # the pipeline ignores them
        "text_encoder": {"use_attention_mask": (None, False)},
    }
    keys: typing.ClassVar = {
        "unet": ("in_channels", "out_channels", "cross_attention_dim"),
        "vae": ("latent_channels", "block_out_channels"),
        "text_encoder": ("hidden_size", "max_position_embeddings"),
        "tokenizer": ("model_max_length",),
    }

    @classmethod
    def check_fit(cls, name: str, configs: Configs, resolution: int) -> None:
        """See `Family`."""
        unet, channels = configs["unet"], configs["vae"]["latent_channels"]
        if unet["in_channels"] == INPAINTING_CHANNELS:
            remedy = "is an inpainting model, which is given a mask, too: choose the text-to-image model that it was made from"
            raise UserError(f"{name}: unet: in_channels", INPAINTING_CHANNELS, remedy)
        for key in ("in_channels", "out_channels"):
            check_fits(name, f"unet: {key}", unet[key], channels, "VAE")
        width, read = configs["text_encoder"]["hidden_size"], unet["cross_attention_dim"]
        same = isinstance(read, list) and len(set(read)) == 1
        check_fits(name, "unet: cross_attention_dim", read[0] if same else read, width, "text encoder")
        factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        check_resolution(name, resolution, max(PIPELINE_MULTIPLE, factor))

    @classmethod
    def check_tokenizer(cls, name: str, folder: Path, configs: Configs) -> None:
        """See `Family`."""
        check_vocabulary(name, folder)
        length, limit = configs["tokenizer"]["model_max_length"], configs["text_encoder"]["max_position_embeddings"]
        if length > limit:
            raise UserError(
                f"{name}: tokenizer: model_max_length", length, f"must be at most {limit}, as the text encoder can read"
            )

    @classmethod
    def candidate_table(cls, path: Path) -> "tuple[pd.DataFrame, int]":
        """See `Family`."""
        import torch
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(path, subfolder="unet"))
        return matrix_table(unet, BLOCKS), sum(parameter.numel() for parameter in unet.parameters())

    def denoiser(self, device: str = "cpu") -> "UNet2DConditionModel":
        """See `Family`."""
        from diffusers import UNet2DConditionModel

        return load_part(UNet2DConditionModel, folder_of(self.record.path), "unet", device)

    def objective(self) -> NoiseObjective:
        """See `Family`."""
        return NoiseObjective(self.scheduler("ddim"))

    def scheduler(self, sampler: Sampler) -> "SchedulerMixin":
        """Load the noise schedule, as the sampler that the model was published with or as DDIM's."""
        import diffusers

        published = read_config(self.record.name, folder_of(self.record.path) / "model_index.json")["scheduler"][1]
        cls = diffusers.DDIMScheduler if sampler == "ddim" else getattr(diffusers, published)
        return cls.from_pretrained(folder_of(self.record.path), subfolder="scheduler")

    def text(self, device: str = "cpu") -> "tuple[CLIPTokenizer, CLIPTextModel]":
        """Load tokenizer and text encoder."""
        from transformers import CLIPTextModel, CLIPTokenizer, CLIPTokenizerFast

        path = folder_of(self.record.path)
        slow = (path / "tokenizer" / "vocab.json").is_file()
        tokenizer = (CLIPTokenizer if slow else CLIPTokenizerFast).from_pretrained(path, subfolder="tokenizer")
        return tokenizer, load_part(CLIPTextModel, path, "text_encoder", device)

    def embed(self, prompts: Sequence[str], device: str = "cpu") -> "torch.Tensor":
        """See `Family`: the text encoder's last hidden state, fp32 [P, L, D]."""
        import torch

        tokenizer, encoder = self.text(device)
        with torch.inference_mode():
            return encoder(tokenise(tokenizer, prompts).to(device)).last_hidden_state.cpu()

    def text_to_image(self, denoiser: "torch.nn.Module", device: str, sampler: Sampler = "model") -> "StableDiffusionPipeline":
        """See `Family`."""
        from diffusers import StableDiffusionPipeline

        parts = (self.vae(device), None, None, denoiser, self.scheduler(sampler), None, None)
        pipeline = StableDiffusionPipeline(*parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @property
    def varied_size(self) -> dict[str, int]:
        """See `Family`: nothing, it looks at the images."""
        return {}

    def conditions(self, prompts: "torch.Tensor", null: "torch.Tensor | None", guidance_scale: float) -> dict[str, object]:
        """See `Family`."""
        negative = None if null is None else null.expand(len(prompts), -1, -1)
        return {"prompt_embeds": prompts, "negative_prompt_embeds": negative, "guidance_scale": guidance_scale}
