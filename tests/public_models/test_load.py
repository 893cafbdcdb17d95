import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dpsapf
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.stable_diffusion import SCHEDULERS, StableDiffusion
from dpsapf.public_models.load import packaged_unet, tokenise
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

LOADERS = {
    "unet": lambda record: load_model(record).denoiser(),
    "vae": lambda record: load_model(record).vae(),
    "text_encoder": lambda record: load_model(record).text()[1],
}


@pytest.fixture
def copy(mini, tmp_path, model_record):
    """The record of a copy that a test may change."""
    shutil.copytree(mini, tmp_path / "copy")
    return replace(model_record, path=str(tmp_path / "copy"), vae_path=str(tmp_path / "copy" / "vae"))


def weights(record, part):
    (path,) = (Path(record.path) / part).glob("*.safetensors")
    return path


def named(tensors):
    """Tensors by their names below ``text_model``, which transformers 5 leaves out."""
    return {name.removeprefix("text_model."): value for name, value in tensors.items()}


@pytest.mark.parametrize("part", LOADERS)
def test_weights_are_those_of_the_file_in_fp32_and_evaluation_mode(model_record, part):
    model, saved = LOADERS[part](model_record), named(load_file(weights(model_record, part)))
    assert {value.dtype for value in saved.values()} == {torch.float16}  # as published
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert not any(module.training for module in model.modules())
    state = named(model.state_dict())
    assert saved.keys() <= state.keys() and all(torch.equal(state[name], value.float()) for name, value in saved.items())


@pytest.mark.parametrize("part", LOADERS)
def test_weights_that_lack_a_tensor_are_refused_by_its_name(copy, part):
    """It would start at random, and differ from run to run."""
    path = weights(copy, part)
    tensors = load_file(path)
    lost = next(name for name in tensors if name.endswith(".weight"))
    save_file({name: value for name, value in tensors.items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{part} = '.*': its weights lack .*{lost.rpartition('.')[0][-8:]}.*save them again"):
        LOADERS[part](copy)


@pytest.mark.parametrize("part", LOADERS)
def test_pickles_are_never_loaded(copy, part):
    path = weights(copy, part)
    tensors = load_file(path)
    path.unlink()
    names = ("diffusion_pytorch_model.bin", "pytorch_model.bin")
    torch.save(tensors, path.with_name(names[part == "text_encoder"]))
    with pytest.raises(OSError, match="safetensors"):
        LOADERS[part](copy)


def test_nothing_is_downloaded(model_record, monkeypatch):
    def fail(*inputs, **keywords):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", fail)
    with pytest.raises(OSError, match="someone/absent"):
        load_model(replace(model_record, path="someone/absent")).denoiser()


def test_a_replaced_vae_is_loaded_from_its_own_folder(model_record, mini, tmp_path):
    shutil.copytree(mini / "vae", tmp_path / "another-name")
    path = tmp_path / "another-name" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: 2 * value for name, value in tensors.items()}, path, {"format": "pt"})
    own, other = (
        load_model(record).vae() for record in (model_record, replace(model_record, vae_path=str(tmp_path / "another-name")))
    )
    assert torch.equal(other.decoder.conv_in.weight, 2 * own.decoder.conv_in.weight)


@pytest.mark.parametrize("published", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_any_published_sampler_trains_by_its_own_schedule(copy, published, prediction):
    """Sampling goes by the class that model_index.json names, or by DDIM; training by the noise levels, which are the same."""
    config = json.loads((Path(copy.path) / "scheduler" / "scheduler_config.json").read_text())
    changed = config | {"_class_name": published, "prediction_type": prediction, "beta_end": 0.02}
    (Path(copy.path) / "scheduler" / "scheduler_config.json").write_text(json.dumps(changed))
    index = json.loads((Path(copy.path) / "model_index.json").read_text())
    (Path(copy.path) / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", published]}))
    model = load_model(copy)
    StableDiffusion.check("copy", Path(copy.path), Path(copy.vae_path), 32)
    expected = torch.linspace(0.00085**0.5, 0.02**0.5, 1000) ** 2
    for scheduler, name in ((model.scheduler("model"), published), (model.scheduler("ddim"), "DDIMScheduler")):
        assert type(scheduler).__name__ == name and scheduler.config.prediction_type == prediction
        torch.testing.assert_close(scheduler.betas, expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(model.objective().scheduler.betas, expected, rtol=1e-5, atol=1e-9)
    assert model.objective().timesteps == 1000


@pytest.mark.parametrize("part", LOADERS)
def test_fp16_weights_are_loaded_where_there_are_no_others_and_cast_to_fp32(copy, part):
    expected, path = LOADERS[part](copy).state_dict(), weights(copy, part)
    half = path.with_name(path.name.replace(".safetensors", ".fp16.safetensors"))
    path.rename(half)
    found = LOADERS[part](copy)
    assert {value.dtype for value in found.parameters()} == {torch.float32}
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    save_file({name: 2 * value for name, value in load_file(half).items()}, path, {"format": "pt"})
    doubled = LOADERS[part](copy).state_dict()
    assert all(torch.equal(value, 2 * expected[name]) for name, value in doubled.items() if value.is_floating_point())


def test_prompts_are_padded_and_cut_to_the_models_length(model_record):
    tokenizer, _ = load_model(model_record).text()
    tokens = tokenise(tokenizer, ["", "a cat", "a red circle " * 50])
    assert tokens.shape == (3, tokenizer.model_max_length) and tokens.dtype == torch.int64
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert (tokens[:, 0] == start).all() and (tokens[:, -1] == end).all()
    assert tokens[0].tolist() == [start] + [end] * (tokens.shape[1] - 1)
    assert tokens[1, 1:3].tolist() == tokenizer("a cat").input_ids[1:3]
    assert end not in tokens[2, :-1].tolist()  # no room is wasted


def test_a_tokenizer_of_one_file_gives_the_same_tokens(copy, model_record):
    for file in ("vocab.json", "merges.txt"):
        (Path(copy.path) / "tokenizer" / file).unlink()
    StableDiffusion.check("copy", Path(copy.path), Path(copy.vae_path), 32)
    prompts = ["", "a photo of a cat", "(OCT) images: 4!"]
    one, two = (tokenise(load_model(record).text()[0], prompts) for record in (copy, model_record))
    assert torch.equal(one, two)


def test_one_prompt_has_the_same_tokens_in_any_company(model_record):
    tokenizer, _ = load_model(model_record).text()
    alone, together = tokenise(tokenizer, ["a photo of a cat"]), tokenise(tokenizer, ("a red circle", "a photo of a cat"))
    assert torch.equal(alone[0], together[1]) and not torch.equal(together[0], together[1])


def test_the_packaged_denoiser_is_that_of_its_folder(model_record):
    folder = Path(dpsapf.__file__).parent / "public_models" / "public-mini"
    packaged, loaded = packaged_unet(), load_model(replace(model_record, path=str(folder))).denoiser()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in packaged.state_dict().items())
    assert not packaged.training and {value.dtype for value in packaged.parameters()} == {torch.float32}
