"""Tiny untrained public models as folders in diffusers layout; `tests.conftest` has one of Stable Diffusion's kind, ``mini``."""

import json

import torch

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def z_image_transformer(**changes):
    from diffusers import ZImageTransformer2DModel

    axes = {"axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32]}
    sizes = {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
    return ZImageTransformer2DModel(**({"in_channels": 16} | sizes | axes | changes))


def z_image_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=16,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
    )


def z_image_tokenizer(folder):
    """Qwen2's tokenizer with bytes as its only tokens."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    folder.mkdir(parents=True)
    vocabulary = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = "<|endoftext|>"
    settings = {"pad_token": end, "eos_token": end, "unk_token": None, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Qwen2Tokenizer.from_pretrained(folder)


def qwen3(tokens):
    from transformers import Qwen3Config, Qwen3Model

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 512}
    return Qwen3Model(Qwen3Config(vocab_size=tokens, num_attention_heads=2, num_key_value_heads=1, head_dim=8, **sizes))


def save_z_image(folder, scratch):
    """Write a tiny Z-Image: latents of 16 channels, images of 32 x 32 become 4 x 4 tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    tokenizer = z_image_tokenizer(scratch / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = (z_image_vae(), qwen3(len(tokenizer)), tokenizer, z_image_transformer())
    with torch.no_grad():  # untrained pad tokens are 0, which no trained one is
        for token in (parts[3].x_pad_token, parts[3].cap_pad_token):
            token.normal_(generator=torch.Generator().manual_seed(1))
    ZImagePipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), *parts).save_pretrained(folder)
