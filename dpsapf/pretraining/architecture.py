"""The untrained parts of ``public-mini``, a small Stable Diffusion, and its folder in diffusers layout."""

import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

if typing.TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 24
VOCABULARY = 512
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
END = "<|endoftext|>"


@dataclass
class Parts:
    """The parts of a latent diffusion model."""

    vae: "AutoencoderKL"
    text_encoder: "CLIPTextModel"
    tokenizer: "CLIPTokenizer"
    unet: "UNet2DConditionModel"
    scheduler: "DDIMScheduler"


def build(folder: Path, prompts: Sequence[str]) -> Parts:
    """Build the untrained parts; initial weights come from torch's current random state.

    Args:
        folder: the tokenizer's files are written to ``folder/tokenizer`` and read back.
        prompts: public prompts that the tokenizer learns its merges from.
    """
    tokenizer = build_tokenizer(folder / "tokenizer", prompts)
    return Parts(build_vae(), build_text_encoder(tokenizer), tokenizer, build_unet(), build_scheduler())


def build_vae() -> "AutoencoderKL":
    """Build the autoencoder: [B, 3, 32, 32] in [-1, 1] to [B, 4, 8, 8]."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def build_unet() -> "UNet2DConditionModel":
    """Build the denoiser: 1.08 M parameters, 14 attention modules, 56 candidate matrices."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def build_text_encoder(tokenizer: "CLIPTokenizer") -> "CLIPTextModel":
    """Build a two-layer CLIP text encoder: tokens [B, 24] to [B, 24, 64]."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> "DDIMScheduler":
    """Build Stable Diffusion's scaled-linear schedule of 1,000 steps, noise prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_tokenizer(folder: Path, prompts: Sequence[str]) -> "CLIPTokenizer":
    """Learn CLIP's byte-pair encoding from prompts; any other text is tokenised too, byte by byte at worst."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_clip_pattern(), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + 2 + VOCABULARY,
        initial_alphabet=alphabet,
        special_tokens=["<|startoftext|>", END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(prompts)), trainer)
    _write_clip_files(folder, json.loads(tokenizer.to_str())["model"], alphabet)
    return CLIPTokenizer.from_pretrained(folder)


def _clip_pattern() -> typing.Any:  # noqa: ANN401
    from tokenizers import Regex

    return Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def _write_clip_files(folder: Path, model: dict, alphabet: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    pieces = alphabet + [letter + "</w>" for letter in alphabet]
    pieces += sorted({"".join(merge) for merge in merges} - set(pieces))
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": "<|startoftext|>",
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def save_pipeline(parts: Parts, folder: Path) -> None:
    """Write the folder layout of a StableDiffusionPipeline: fp16 safetensors, no safety checker."""
    from diffusers import StableDiffusionPipeline

    for module in (parts.vae, parts.text_encoder, parts.unet):
        module.half()
    pipeline = StableDiffusionPipeline(
        parts.vae,
        parts.text_encoder,
        parts.tokenizer,
        parts.unet,
        parts.scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _name_text_weights(folder / "text_encoder" / "model.safetensors")
    _load_text_encoder_in_fp32(folder / "text_encoder" / "config.json")


def _name_text_weights(file: Path) -> None:
    """Give text weights the prefix of published models: all transformers releases load it, some write none."""
    weights = load_file(file)
    prefixed = {"text_model." + name.removeprefix("text_model."): value for name, value in weights.items()}
    save_file(prefixed, file, {"format": "pt"})


def _load_text_encoder_in_fp32(file: Path) -> None:
    """Name fp32 as the text encoder's dtype: diffusers loads the other parts in it, and one dtype must go through all."""
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
