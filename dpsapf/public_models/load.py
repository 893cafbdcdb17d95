"""Load the parts of a public model in diffusers' folder layout: safetensors only, fp32, evaluation mode."""

import typing
from collections.abc import Sequence
from pathlib import Path

from dpsapf.experiment.registries import PACKAGED
from dpsapf.public_models.check import variant
from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTokenizer


def folder_of(path: str) -> Path:
    """Return the folder of a path in a record; a packaged model, ``package:NAME``, lies in this checkout wherever that is."""
    return Path(__file__).parent / path.removeprefix(PACKAGED) if path.startswith(PACKAGED) else Path(path)


def packaged_unet() -> "UNet2DConditionModel":
    """Load the denoiser of the packaged ``public-mini``."""
    from diffusers import UNet2DConditionModel

    return load_part(UNet2DConditionModel, Path(__file__).parent / "public-mini", "unet")


def tokenise(tokenizer: "CLIPTokenizer", prompts: Sequence[str]) -> "torch.Tensor":
    """Tokenise as StableDiffusionPipeline does: padded and cut to the model's length, int64 [B, L]."""
    length = tokenizer.model_max_length
    return tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def load_part(cls: type, folder: Path, part: str, device: str = "cpu") -> "torch.nn.Module":
    """Load one part of a model: fp32, in evaluation mode, from its fp16 weights if it has no others.

    Args:
        cls: class of diffusers or transformers.
        folder: the model.
        part: the part's folder in it.
        device: where to put it.

    Raises:
        UserError: the weights lack a tensor, which would start at random.
    """
    import torch
    from diffusers.utils import logging

    logging.set_verbosity_error()
    keywords = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    model, found = cls.from_pretrained(str(folder), subfolder=part, variant=variant(folder / part), **keywords)
    if found["missing_keys"]:
        remedy = f"its weights lack {min(found['missing_keys'])}, which would start at random; save them again"
        raise UserError(f"{folder}: {part}", cls.__name__, remedy)
    return model.to(device=device, dtype=torch.float32).eval()
