"""Candidate matrices of the published models, counted from their configs alone."""

import json

import pytest

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX
from dpsapf.public_models.families.stable_diffusion import StableDiffusion
from dpsapf.public_models.families.z_image import ZImage

DOWN, UP = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
COMMON = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": [320, 640, 1280, 1280]}
SHAPE = {"sample_size": 64, "down_block_types": DOWN, "up_block_types": UP, "norm_num_groups": 32, "norm_eps": 1e-05}
V1_5 = COMMON | SHAPE | {"attention_head_dim": 8, "cross_attention_dim": 768}
V2_1_BASE = COMMON | SHAPE | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
Z_IMAGE = {
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}


def table(family, config, tmp_path, cls):
    folder = tmp_path / family.denoiser_part
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": cls, "_diffusers_version": "0.42.1"}))
    return family.candidate_table(tmp_path)


@pytest.mark.parametrize(("config", "parameters"), [(V1_5, 859_520_964), (V2_1_BASE, 865_910_724)])
def test_stable_diffusion_has_128_attention_matrices(tmp_path, config, parameters):
    found, count = table(StableDiffusion, config, tmp_path, "UNet2DConditionModel")
    assert count == parameters  # as published
    attention = found[found[CANDIDATES] == "attention"]
    assert len(attention) == 128 and attention[LAYER].nunique() == 32
    assert set(attention[BLOCK]) == {f"down_blocks.{k}" for k in range(3)} | {"mid_block"} | {f"up_blocks.{k}" for k in (1, 2, 3)}
    assert (found[CANDIDATES] == "attention+proj").sum() == (found[CANDIDATES] == "attention+ffn").sum() == 32


def test_z_image_has_136_attention_matrices_in_34_blocks_and_no_other_candidate(tmp_path):
    found, count = table(ZImage, Z_IMAGE, tmp_path, "ZImageTransformer2DModel")
    places = [("noise_refiner", 2), ("context_refiner", 2), ("layers", 30)]
    blocks = [f"{name}.{index}" for name, number in places for index in range(number)]
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    assert found[MATRIX].tolist() == [f"{block}.attention.{end}" for block in blocks for end in ends] and len(found) == 136
    assert set(found[BLOCK]) == set(blocks) and set(found[LAYER]) == {f"{block}.attention" for block in blocks}
    assert set(found[CANDIDATES]) == {"attention"}
    assert 6.0e9 < count < 6.3e9  # "6B"
