"""prepare-public-model refuses what a family does not know: one line, before anything is written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpsapf.public_models.families import FAMILIES, load_model
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

SD, Z = "stable-diffusion", "z-image"
INDEX, UNET, VAE, SCHEDULER = "model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
TRANSFORMER, TEXT, TOKENIZER = "transformer/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"
OTHER_PIPELINES = (
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "PixArtAlphaPipeline",
    "FluxPipeline",
    "StableDiffusionInpaintPipeline",
    "ZImageOmniPipeline",
)
REFUSED = [
    (SD, UNET, {"_class_name": "PixArtTransformer2DModel"}, r"unet = 'PixArtTransformer2DModel'.*knows UNet2DConditionModel"),
    (SD, INDEX, {"unet": ["diffusers", "UNet2DModel"]}, r"unet = 'UNet2DModel'.*add its family"),
    (SD, INDEX, {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}, "text_encoder = 'CLIPTextModelWithProj"),
    (SD, INDEX, {"text_encoder": None}, r"text_encoder = None: family stable-diffusion knows CLIPTextModel"),
    (SD, INDEX, {"tokenizer": ["transformers", "T5Tokenizer"]}, "tokenizer = 'T5Tokenizer'"),
    (SD, VAE, {"_class_name": "AutoencoderTiny"}, r"vae = 'AutoencoderTiny'.*AutoencoderKL"),
    (SD, SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "scheduler = 'FlowMatchEuler"),
    (SD, INDEX, {"scheduler": ["diffusers", "LCMScheduler"]}, "scheduler = 'LCMScheduler'"),
    (SD, SCHEDULER, {"prediction_type": "sample"}, r"prediction_type = 'sample'.*epsilon, v_prediction"),
    (SD, SCHEDULER, {"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction'"),
    (SD, SCHEDULER, {"use_flow_sigmas": True}, "use_flow_sigmas = True"),
    (SD, UNET, {"in_channels": 9}, r"in_channels = 9: is an inpainting model.*choose the text-to-image model"),
    (SD, UNET, {"in_channels": 8}, r"in_channels = 8: its VAE has 4: give the VAE that it was trained with"),
    (SD, UNET, {"out_channels": 8}, "out_channels = 8: its VAE has 4"),
    (SD, VAE, {"latent_channels": 16}, r"in_channels = 4: its VAE has 16: give the VAE"),
    (SD, UNET, {"cross_attention_dim": 1024}, r"cross_attention_dim = 1024: its text encoder has 64"),
    (SD, UNET, {"cross_attention_dim": None}, "unet: cross_attention_dim = None: is not in its config"),
    (SD, INDEX, {"scheduler": [None, None]}, "scheduler = None: family stable-diffusion knows PNDM"),
    (SD, UNET, {"addition_embed_type": "text_time"}, r"addition_embed_type = 'text_time': its family knows none"),
    (SD, UNET, {"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
    (SD, UNET, {"num_class_embeds": 10}, "num_class_embeds = 10"),
    (SD, UNET, {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type = 'text_proj'"),
    (SD, UNET, {"time_cond_proj_dim": 256}, "time_cond_proj_dim = 256"),
    (SD, VAE, {"shift_factor": 0.1}, "vae: shift_factor = 0.1"),
    (SD, VAE, {"latents_mean": [0.1] * 4}, "vae: latents_mean ="),
    (SD, VAE, {"latents_std": [2.0] * 4}, "vae: latents_std ="),
    (SD, TEXT, {"use_attention_mask": True}, "use_attention_mask = True"),
    (SD, TOKENIZER, {"model_max_length": None}, "tokenizer: model_max_length = None: is not in its config"),
    (SD, TOKENIZER, {"model_max_length": 77}, r"model_max_length = 77: must be at most 24"),
    (Z, TRANSFORMER, {"_class_name": "FluxTransformer2DModel"}, r"transformer = 'FluxTransformer2DModel'.*family z-image"),
    (Z, TRANSFORMER, {"in_channels": 4}, "in_channels = 4: its VAE has 16"),
    (Z, TRANSFORMER, {"cap_feat_dim": 2560}, "cap_feat_dim = 2560: its text encoder has 16"),
    (Z, TRANSFORMER, {"siglip_feat_dim": 1152}, "siglip_feat_dim = 1152"),
    (Z, TRANSFORMER, {"all_patch_size": [2, 4]}, r"all_patch_size = \[2, 4\]"),
    (Z, TRANSFORMER, {"all_f_patch_size": [2]}, r"all_f_patch_size = \[2\]"),
    (Z, VAE, {"shift_factor": None}, "vae: shift_factor = None: is not in its config"),
    (Z, VAE, {"latents_mean": [0.1] * 16}, "vae: latents_mean ="),
    (Z, INDEX, {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}, "scheduler = 'EulerDiscreteScheduler'"),
    (Z, SCHEDULER, {"use_dynamic_shifting": True}, "use_dynamic_shifting = True"),
    (Z, SCHEDULER, {"stochastic_sampling": True}, "stochastic_sampling = True"),
    (Z, SCHEDULER, {"num_train_timesteps": 500}, "num_train_timesteps = 500: its family knows 1000"),
    (Z, SCHEDULER, {"shift_terminal": 0.1}, "shift_terminal = 0.1"),
    (Z, INDEX, {"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder = 'T5EncoderModel'"),
]


def assert_refused(prepare, tmp_path, message, **entry):
    with pytest.raises(UserError, match=message) as caught:
        prepare(**entry)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.json").exists() and not (tmp_path / "candidates.csv").exists()


@pytest.mark.parametrize(("family", "file", "keys", "message"), REFUSED)
def test_what_a_family_does_not_know_is_named(prepare, changed, tmp_path, family, file, keys, message):
    assert_refused(prepare, tmp_path, message, path=str(changed(family, file, **keys)))


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_copies_pass(prepare, changed, family):
    assert prepare(path=str(changed(family, INDEX)))[0].family == family


def test_old_configs_that_leave_defaults_out_pass(prepare, changed):
    """As SD v1-5's: neither scaling factor nor prediction type nor the keys that came later."""
    changed(SD, VAE, scaling_factor=None, shift_factor=None, latents_mean=None, latents_std=None, force_upcast=None)
    changed(SD, SCHEDULER, prediction_type=None, timestep_spacing=None)
    folder = changed(SD, UNET, **dict.fromkeys(("addition_embed_type", "class_embed_type", "num_class_embeds")))
    model = load_model(prepare(path=str(folder))[0])
    assert model.vae().config.scaling_factor == 0.18215 and model.objective().scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("pipeline", OTHER_PIPELINES)
def test_models_of_other_families_are_named(prepare, changed, tmp_path, pipeline):
    folder = changed(SD, INDEX, _class_name=pipeline)
    message = rf"pipeline = '{pipeline}'.*StableDiffusionPipeline, ZImagePipeline\): choose another model, or add its family"
    assert_refused(prepare, tmp_path, message, path=str(folder))


@pytest.mark.parametrize(("family", "resolution", "multiple"), [(SD, 36, 8), (Z, 36, 8), (Z, 20, 8)])
def test_a_resolution_that_cannot_be_sampled_is_refused(prepare, changed, tmp_path, family, resolution, multiple):
    folder = changed(family, INDEX)
    assert_refused(
        prepare, tmp_path, f"resolution = {resolution}: must be a multiple of {multiple}", path=str(folder), resolution=resolution
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd.safetensors", r"path = .*is a single file.*StableDiffusionPipeline.from_single_file.*save_pretrained"),
        ("sd.ckpt", "path = .*pickles are never loaded"),
        ("sd.bin", "path = .*pickles are never loaded"),
    ],
)
def test_checkpoints_of_one_file_are_refused_with_what_to_do(prepare, mini, tmp_path, name, message):
    (tmp_path / name).touch()
    assert_refused(prepare, tmp_path, message, path=str(tmp_path / name))
    message = message.replace("path", "vae").replace("StableDiffusionPipeline", "AutoencoderKL")
    assert_refused(prepare, tmp_path, message, path=str(mini), vae=str(tmp_path / name))


def test_what_is_not_there_is_said_to_be_not_there(prepare, mini, tmp_path):
    assert_refused(prepare, tmp_path, "path = .*absent.*does not exist", path=str(tmp_path / "absent"))
    assert_refused(prepare, tmp_path, "hub_id = .*must be OWNER/NAME", hub_id="owner/name/sd.safetensors", revision="0" * 40)
    assert_refused(prepare, tmp_path, "mini: vae: hub_id = .*must be OWNER/NAME", path=str(mini), vae=str(tmp_path / "absent"))


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_broken_config_is_named(prepare, changed, tmp_path, text):
    folder = changed(SD, INDEX)
    (folder / UNET).write_text(text)
    assert_refused(prepare, tmp_path, "unet/config.json.*get the model again", path=str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_without_a_vocabulary_is_refused(prepare, changed, tmp_path, family):
    """Transformers 5 would go on with an empty one."""
    folder = changed(family, INDEX)
    for file in ("tokenizer.json", "merges.txt"):
        (folder / "tokenizer" / file).unlink(missing_ok=True)
    assert_refused(prepare, tmp_path, "lacks vocab.json and merges.txt, or else tokenizer.json", path=str(folder))


def test_a_tokenizer_without_a_chat_template_is_refused(prepare, changed, tmp_path):
    folder = changed(Z, TOKENIZER, chat_template=None)
    (folder / "tokenizer" / "chat_template.jinja").unlink(missing_ok=True)
    assert_refused(prepare, tmp_path, "chat_template = None: prompts are put into", path=str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_under_another_name_or_without_a_shard_are_refused(prepare, changed, tmp_path, part):
    folder = changed(SD, INDEX)
    (weights,) = (folder / part).glob("*.safetensors")
    other = weights.rename(weights.with_name("weights.safetensors"))
    assert_refused(prepare, tmp_path, f"{part}.*has no .safetensors weights", path=str(folder))
    index = {"weight_map": {"a": "first.safetensors", "b": other.name}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    assert_refused(prepare, tmp_path, f"{part}.*all shards of its index", path=str(folder))


def test_weights_in_shards_are_loaded(prepare, changed, mini):
    folder = changed(SD, INDEX)
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    shards = {name: f"diffusion_pytorch_model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / "unet" / shard, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    record, _ = prepare(path=str(folder))
    state = load_model(record).denoiser().state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in tensors.items())


def test_a_vae_from_elsewhere_is_checked_in_the_place_of_the_models_own(prepare, changed, mini, z_image, tmp_path):
    shutil.copytree(mini / "vae", tmp_path / "other")
    folder = changed(SD, INDEX, vae=[None, None])
    shutil.rmtree(folder / "vae")
    assert prepare(path=str(folder), vae=str(tmp_path / "other"))[0].vae_path == str(tmp_path / "other")
    with pytest.raises(UserError, match="shift_factor = 0.1159"):
        prepare(path=str(folder), vae=str(z_image / "vae"))


def test_a_record_of_an_unknown_family_is_refused(model_record):
    with pytest.raises(UserError, match="family = 'flux': must be one of stable-diffusion, z-image"):
        load_model(replace(model_record, family="flux"))
