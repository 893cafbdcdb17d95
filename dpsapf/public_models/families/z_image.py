"""Z-Image: a transformer over image and caption tokens, a Qwen3 text encoder, flow matching."""

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpsapf.experiment.columns import CANDIDATES
from dpsapf.experiment.methods import Sampler
from dpsapf.public_models.candidates import matrix_table
from dpsapf.public_models.check import check_fits, check_resolution, check_vocabulary
from dpsapf.public_models.families.family import Configs, Family, Objective
from dpsapf.public_models.load import folder_of, load_part
from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen2Tokenizer, Qwen3Model

    from dpsapf.public_models.latents import Pairs

BLOCKS = re.compile(r"(layers|noise_refiner|context_refiner)\.\d+|\w+")
PATCH = 2
OTHER_SCHEDULES = (
    "use_dynamic_shifting",
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "stochastic_sampling",
)


@dataclass(frozen=True)
class FlowObjective(Objective):
    """Flow matching (Lipman et al. 2023; rectified flow, Liu et al. 2023): of x = (1 - s) z + s n the target is n - z.

    The noise level s is drawn from the scheduler's own, shifted schedule.

    Attributes:
        scheduler: with the noise levels that the model was published with.
    """

    scheduler: "FlowMatchEulerDiscreteScheduler"

    @property
    def timesteps(self) -> int:
        """Number of noise levels of the schedule."""
        return self.scheduler.config.num_train_timesteps

    def predictions(self, denoiser: "torch.nn.Module", pairs: "Pairs") -> "torch.Tensor":
        """See `Objective`. The transformer is given 1 - s, and predicts z - n."""
        import torch

        levels = self.scheduler.sigmas.to(pairs.latents)[pairs.timesteps]
        share = levels[:, None, None, None]
        noisy = (1 - share) * pairs.latents + share * pairs.noise
        images = list(noisy.unsqueeze(2).unbind())  # [C, 1, h, w] each: a frame of a film of one
        found = denoiser(images, 1 - levels, without_padding(pairs.embeddings), return_dict=False)[0]
        return -torch.stack(found).squeeze(2).float()

    def targets(self, pairs: "Pairs") -> "torch.Tensor":
        """See `Objective`."""
        return pairs.noise - pairs.latents


def padded(embeddings: "list[torch.Tensor]") -> "torch.Tensor":
    """Fill embeddings [L_i, D] with zeros up to the longest: [P, L, D]. No token's own embedding is zero.

    Raises:
        ValueError: one is.
    """
    import torch

    if not all(tokens.any(1).all() for tokens in embeddings):
        raise ValueError("a token has the embedding 0, which marks padding")
    return torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True)


def without_padding(embeddings: "torch.Tensor") -> "list[torch.Tensor]":
    """Undo `padded`: the transformer pads by tokens of its own, so that each caption's length counts."""
    return [tokens[tokens.any(1)] for tokens in embeddings]


class ZImage(Family):
    """Z-Image and Z-Image-Turbo.

    Only the attention matrices are candidates. The embedders see the tokens of all images in one sequence without a batch
    axis, so the per-image norms of their gradients are not known; attention sees [B, T, D].
    """

    name = "z-image"
    pipeline = "ZImagePipeline"
    denoiser_part = "transformer"
    classes: typing.ClassVar = {
        "transformer": ("ZImageTransformer2DModel",),
        "scheduler": ("FlowMatchEulerDiscreteScheduler",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("Qwen3Model",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }
    settings: typing.ClassVar = {
        "transformer": {"siglip_feat_dim": (None,), "all_patch_size": (None, [PATCH]), "all_f_patch_size": (None, [1])},
        "scheduler": {"num_train_timesteps": (None, 1000), "shift_terminal": (None,)}  # the pipeline counts on 1000
        | dict.fromkeys(OTHER_SCHEDULES, (None, False)),
        "vae": {"latents_mean": (None,), "latents_std": (None,)},
    }
    keys: typing.ClassVar = {
        "transformer": ("in_channels", "cap_feat_dim"),
        "vae": ("latent_channels", "block_out_channels", "shift_factor"),
        "text_encoder": ("hidden_size",),
    }

    @classmethod
    def check_fit(cls, name: str, configs: Configs, resolution: int) -> None:
        """See `Family`."""
        transformer, vae, width = configs["transformer"], configs["vae"], configs["text_encoder"]["hidden_size"]
        check_fits(name, "transformer: in_channels", transformer["in_channels"], vae["latent_channels"], "VAE")
        check_fits(name, "transformer: cap_feat_dim", transformer["cap_feat_dim"], width, "text encoder")
        check_resolution(name, resolution, PATCH * 2 ** (len(vae["block_out_channels"]) - 1))

    @classmethod
    def check_tokenizer(cls, name: str, folder: Path, configs: Configs) -> None:
        """See `Family`."""
        check_vocabulary(name, folder)
        if not configs["tokenizer"].get("chat_template") and not (folder / "chat_template.jinja").is_file():
            remedy = "prompts are put into the tokenizer's chat template, and it has none: get the tokenizer again"
            raise UserError(f"{name}: tokenizer: chat_template", None, remedy)

    @classmethod
    def candidate_table(cls, path: Path) -> "tuple[pd.DataFrame, int]":
        """See `Family`; the attention's matrices only."""
        import torch
        from diffusers import ZImageTransformer2DModel

        with torch.device("meta"):
            transformer = ZImageTransformer2DModel.from_config(
                ZImageTransformer2DModel.load_config(path, subfolder="transformer")
            )
        table = matrix_table(transformer, BLOCKS)
        attention = table[table[CANDIDATES] == "attention"].reset_index(drop=True)
        return attention, sum(parameter.numel() for parameter in transformer.parameters())

    def denoiser(self, device: str = "cpu") -> "ZImageTransformer2DModel":
        """See `Family`."""
        from diffusers import ZImageTransformer2DModel

        return load_part(ZImageTransformer2DModel, folder_of(self.record.path), "transformer", device)

    def scheduler(self, sampler: Sampler = "model") -> "FlowMatchEulerDiscreteScheduler":
        """Load the noise levels, as the sampler that the model was published with.

        Raises:
            UserError: another sampler is asked for.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler

        if sampler != "model":
            raise UserError(
                "sampler", sampler, f"family {self.name} matches flows and is sampled by its own scheduler: use model"
            )
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder_of(self.record.path), subfolder="scheduler")

    def objective(self) -> FlowObjective:
        """See `Family`."""
        return FlowObjective(self.scheduler())

    def text(self, device: str = "cpu") -> "tuple[Qwen2Tokenizer, Qwen3Model]":
        """Load tokenizer and text encoder."""
        from transformers import Qwen2Tokenizer, Qwen3Model

        path = folder_of(self.record.path)
        tokenizer = Qwen2Tokenizer.from_pretrained(path, subfolder="tokenizer")
        return tokenizer, load_part(Qwen3Model, path, "text_encoder", device)

    def embed(self, prompts: Sequence[str], device: str = "cpu") -> "torch.Tensor":
        """See `Family`: the text encoder's last hidden state but one, of the chat template's tokens; see `padded`."""
        import torch
        from diffusers import ZImagePipeline

        tokenizer, encoder = self.text(device)
        pipeline = ZImagePipeline(None, None, encoder, tokenizer, None)
        with torch.inference_mode():  # one at a time: all layers' states are kept of each
            found = [pipeline.encode_prompt([prompt], device, False)[0][0].cpu() for prompt in prompts]
        return padded(found)

    def text_to_image(self, denoiser: "torch.nn.Module", device: str, sampler: Sampler = "model") -> "ZImagePipeline":
        """See `Family`."""
        from diffusers import ZImagePipeline

        pipeline = ZImagePipeline(self.scheduler(sampler), self.vae(device), None, None, denoiser)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def conditions(self, prompts: "torch.Tensor", null: "torch.Tensor | None", guidance_scale: float) -> dict[str, object]:
        """See `Family`. The pipeline's own guidance is w - 1: it adds to the prompt's prediction."""
        negative = None if null is None else without_padding(null[None]) * len(prompts)
        return {
            "prompt_embeds": without_padding(prompts),
            "negative_prompt_embeds": negative,
            "guidance_scale": guidance_scale - 1,
        }
