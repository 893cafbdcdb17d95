import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpsapf.pretraining.architecture import MAX_TOKENS, TEXT_WIDTH, build_tokenizer, build_unet
from dpsapf.public_models.families import load_model
from dpsapf.public_models.load import tokenise
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["a handwritten digit 7", "a photo of a cat"])


def test_plain_diffusers_loads_the_folder_and_draws_without_a_dtype(mini):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(mini)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline("a handwritten digit 7", num_inference_steps=2, generator=generator, output_type="np")
    assert drawn.images.shape == (1, 32, 32, 3)
    assert pipeline.safety_checker is None


def test_folder_is_small_and_has_no_pickles(mini):
    files = [path for path in mini.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {path.suffix for path in files} == {".json", ".txt", ".safetensors"}


def test_unet_has_the_documented_size():
    unet = build_unet()
    assert sum(parameter.numel() for parameter in unet.parameters()) == 1_077_572
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    assert sum(name.endswith(ends) for name, _ in unet.named_modules()) == 56


def test_loaded_parts_are_fp32_in_evaluation_mode_with_the_saved_weights(model_record, mini):
    model = load_model(model_record)
    unet, vae, (tokenizer, text) = model.denoiser(), model.vae(), model.text()
    for module in (unet, vae, text):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    saved = load_file(mini / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name].float(), value) for name, value in unet.state_dict().items())
    assert tokenizer.model_max_length == MAX_TOKENS
    assert text(tokenise(tokenizer, ["x"])).last_hidden_state.shape == (1, MAX_TOKENS, TEXT_WIDTH)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_lack_a_tensor_are_refused(model_record, mini, tmp_path, part):
    shutil.copytree(mini, tmp_path / "copy")
    file = next((tmp_path / "copy" / part).glob("*.safetensors"))
    weights = load_file(file)
    lost = min(weights)
    save_file({name: value for name, value in weights.items() if name != lost}, file, {"format": "pt"})
    model = load_model(replace(model_record, path=str(tmp_path / "copy"), vae_path=str(tmp_path / "copy" / "vae")))
    load = {"unet": model.denoiser, "vae": model.vae, "text_encoder": model.text}[part]
    with pytest.raises(UserError, match=rf"lack \S*{lost.removeprefix('text_model.')}"):
        load()


def test_text_weights_are_named_as_in_published_models(mini):
    names = load_file(mini / "text_encoder" / "model.safetensors")
    assert "text_model.final_layer_norm.weight" in names
    assert all(name.startswith("text_model.") and name.count("text_model.") == 1 for name in names)


def test_schedule_is_that_of_stable_diffusion(model_record):
    scheduler = load_model(model_record).scheduler("model")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert torch.allclose(scheduler.betas, betas)
    assert scheduler.config.prediction_type == "epsilon"
    assert scheduler.config.clip_sample is False


def test_vae_shrinks_by_four(model_record):
    vae = load_model(model_record).vae()
    latents = vae.encode(torch.zeros(2, 3, 32, 32)).latent_dist.mean
    assert latents.shape == (2, 4, 8, 8)
    assert vae.decode(latents).sample.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("text", ["a handwritten digit 7", "Ünïcode 中文 🐈 xyzzy", "(OCT) images: 4!"])
def test_tokenizer_loses_nothing_but_case_and_spaces(tokenizer, text):
    tokens = tokenizer(text).input_ids
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in tokens[1:-1]
    decoded = tokenizer.decode(tokens, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.lower().replace(" ", "")


def test_prompts_are_padded_and_cut(tokenizer):
    tokens = tokenise(tokenizer, ["", "a photo of a cat", "zebra " * 50])
    assert tokens.shape == (3, MAX_TOKENS)
    assert tokens[0].tolist() == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * (MAX_TOKENS - 1)
    assert tokens[2, -1] == tokenizer.eos_token_id


def test_learnt_words_are_one_token_each(tokenizer):
    assert len(tokenizer("handwritten digit").input_ids) == 4
    assert len(tokenizer("unheard").input_ids) > 3


def test_tokenizer_is_the_same_for_the_same_prompts_in_any_order(tmp_path):
    prompts = ["a red circle", "a blue square", "a red square"]
    build_tokenizer(tmp_path / "a", prompts)
    build_tokenizer(tmp_path / "b", prompts[::-1] * 2)
    build_tokenizer(tmp_path / "c", ["quite other words"] * 3)
    texts = [(tmp_path / folder / "merges.txt").read_text() for folder in "abc"]
    assert texts[0] == texts[1] != texts[2]
    assert json.loads((tmp_path / "a" / "vocab.json").read_text()) == json.loads((tmp_path / "b" / "vocab.json").read_text())


def test_saved_tokenizer_reads_back_the_same(mini, model_record, tmp_path):
    from tests.conftest import PROMPTS

    fresh, (saved, _) = build_tokenizer(tmp_path, PROMPTS), load_model(model_record).text()
    assert torch.equal(tokenise(fresh, PROMPTS), tokenise(saved, PROMPTS))
