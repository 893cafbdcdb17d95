"""Load the parts of a public model in diffusers' folder layout: safetensors only, fp32, evaluation mode."""

import typing
from collections.abc import Sequence
from pathlib import Path

from dpsapf.experiment.records import ModelRecord
from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


def load_unet(record: ModelRecord, device: str = "cpu") -> "UNet2DConditionModel":
    """Load the denoiser."""
    from diffusers import UNet2DConditionModel

    return _ready(UNet2DConditionModel, record.path, "unet", device)


def packaged_unet() -> "UNet2DConditionModel":
    """Load the denoiser of the packaged ``public-mini``."""
    from diffusers import UNet2DConditionModel

    return _ready(UNet2DConditionModel, str(Path(__file__).parent / "public-mini"), "unet", "cpu")


def load_vae(record: ModelRecord, device: str = "cpu") -> "AutoencoderKL":
    """Load the autoencoder from ``vae_path``, which may be another model's."""
    from diffusers import AutoencoderKL

    path = Path(record.vae_path)
    return _ready(AutoencoderKL, str(path.parent), path.name, device)


def load_scheduler(record: ModelRecord) -> "DDIMScheduler":
    """Load the noise schedule as a DDIM scheduler, whatever sampler the model was published with."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_pretrained(record.path, subfolder="scheduler")


def assemble(record: ModelRecord, unet: "UNet2DConditionModel", device: str = "cpu") -> "StableDiffusionPipeline":
    """Put a denoiser, changed or not, into diffusers' pipeline; prompts come as embeddings."""
    from diffusers import StableDiffusionPipeline

    vae, scheduler = load_vae(record, device), load_scheduler(record)
    pipeline = StableDiffusionPipeline(vae, None, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_text(record: ModelRecord, device: str = "cpu") -> "tuple[CLIPTokenizer, CLIPTextModel]":
    """Load tokenizer and text encoder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(record.path, subfolder="tokenizer")
    return tokenizer, _ready(CLIPTextModel, record.path, "text_encoder", device)


def tokenise(tokenizer: "CLIPTokenizer", prompts: Sequence[str]) -> "torch.Tensor":
    """Tokenise as StableDiffusionPipeline does: padded and cut to the model's length, int64 [B, L]."""
    length = tokenizer.model_max_length
    return tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def embed_prompts_of(record: ModelRecord, prompts: Sequence[str], device: str = "cpu") -> "torch.Tensor":
    """Embed prompts as StableDiffusionPipeline does: the text encoder's last hidden state, fp32 [P, L, D]."""
    import torch

    tokenizer, encoder = load_text(record, device)
    with torch.inference_mode():
        return encoder(tokenise(tokenizer, prompts).to(device)).last_hidden_state.cpu()


def _ready(cls: type, path: str, subfolder: str, device: str) -> "torch.nn.Module":
    import torch
    from diffusers.utils import logging

    logging.set_verbosity_error()
    keywords = {"subfolder": subfolder, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    model, found = cls.from_pretrained(path, **keywords)
    if found["missing_keys"]:
        remedy = f"its weights lack {min(found['missing_keys'])}, which would start at random; save them again"
        raise UserError(f"{path}: {subfolder}", cls.__name__, remedy)
    return model.to(device=device, dtype=torch.float32).eval()
