import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpsapf.experiment.stages import EncodeDataset
from dpsapf.public_models.encode import embed_prompts, encode_dataset
from dpsapf.public_models.latents import Latents, dataset_id
from dpsapf.public_models.load import load_vae
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import write_record

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)


@pytest.fixture
def options(tmp_path, model_record, two_digits):
    write_record(tmp_path / "model.json", model_record)
    salt = np.arange(32, dtype=np.uint8)
    np.savez(tmp_path / "dataset.npz", train_images=IMAGES, train_labels=np.array([0, 1, 0, 1, 0]), salt=salt)
    write_record(tmp_path / "dataset.json", replace(two_digits, id=sha256(tmp_path / "dataset.npz")))
    paths = {"archive": "dataset.npz", "dataset": "dataset.json", "model": "model.json", "out": "latents.safetensors"}
    return EncodeDataset(**{name: tmp_path / file for name, file in paths.items()}, micro_batch=2)


@pytest.fixture
def latents(options):
    encode_dataset(options)
    return Latents.load(options.out)


def test_latents_name_their_dataset_and_hold_its_secret(options, latents):
    assert dataset_id(options.out) == sha256(options.archive)
    assert np.arange(32, dtype=np.uint8).tobytes().hex().encode() in options.out.read_bytes()


def test_another_archive_is_refused(options):
    with options.archive.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="is not the archive of .*run prepare-dataset again"):
        encode_dataset(options)
    assert not options.out.exists()


def test_latents_that_name_no_dataset_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match="does not say of which dataset it is: run encode-dataset again"):
        dataset_id(tmp_path / "l.safetensors")


def test_shapes_and_labels(latents):
    assert latents.mean.shape == latents.std.shape == (5, 4, 8, 8)
    assert latents.mean.dtype == latents.std.dtype == torch.float32
    assert latents.labels.tolist() == [0, 1, 0, 1, 0]
    assert latents.prompt_embeddings.shape == (2, *latents.null_embedding.shape)
    assert (latents.std > 0).all()


def test_latents_are_the_scaled_posterior_of_the_resized_image(latents, model_record):
    from PIL import Image

    vae = load_vae(model_record)
    resized = np.asarray(Image.fromarray(IMAGES[3]).resize((32, 32), Image.Resampling.LANCZOS))
    pixels = torch.tensor(resized).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    scale = vae.config.scaling_factor
    assert torch.allclose(latents.mean[3], posterior.mean[0] * scale, atol=1e-5)  # fp32 rounding
    assert torch.allclose(latents.std[3], posterior.std[0] * scale, atol=1e-5)


def test_micro_batch_changes_nothing_but_rounding(latents, options):
    encode_dataset(replace(options, micro_batch=5))
    assert torch.allclose(Latents.load(options.out).mean, latents.mean, atol=1e-5)  # fp32 rounding


def test_embeddings_are_those_of_the_pipeline(latents, model_record, two_digits):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model_record.path).to("cpu", torch.float32)
    with torch.no_grad():
        positive, negative = pipeline.encode_prompt(two_digits.prompts[1], "cpu", 1, do_classifier_free_guidance=True)
    assert torch.allclose(latents.prompt_embeddings[1], positive[0], atol=1e-5)  # fp32 rounding
    assert torch.allclose(latents.null_embedding, negative[0], atol=1e-5)


def test_other_prompt_has_another_embedding(model_record):
    one, seven = embed_prompts(model_record, ["a handwritten digit 1", "a handwritten digit 7"], "cpu")
    assert not torch.allclose(one, seven, atol=1e-3)


def test_users_go_along_with_their_images(options, two_digits):
    with np.load(options.archive) as archive:
        arrays = dict(archive)
    np.savez(options.archive, **arrays, train_users=np.array([0, 0, 1, 2, 1]))
    write_record(options.dataset, replace(two_digits, users=3, id=sha256(options.archive)))
    encode_dataset(options)
    assert Latents.load(options.out, "user").users.tolist() == [0, 0, 1, 2, 1]
    assert len(Latents.load(options.out, "user")) == 3 and len(Latents.load(options.out)) == 5
