import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpsapf.experiment.stages import EmbedPrompts, EncodeDataset
from dpsapf.public_models import encode
from dpsapf.public_models.encode import ROUNDING, SMALLEST, embed_prompts, encode_dataset, in_fp16
from dpsapf.public_models.families import load_model
from dpsapf.public_models.latents import Latents, load_prompts, origin
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.interruption import Interrupted, listening
from dpsapf.support.records import write_record
from tests.prepared_dataset import write_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)


def plant(path, users=None):
    """Five training images among others, with 32 known secret bytes."""
    rest = IMAGES[:2, ::-1], np.array([1, 0])
    write_dataset(path, {"test": rest, "train": (IMAGES, np.array([0, 1, 0, 1, 0]))}, users)


@pytest.fixture
def options(tmp_path, model_record, two_digits):
    write_record(tmp_path / "model.json", model_record)
    plant(tmp_path / "dataset.safetensors")
    write_record(tmp_path / "dataset.json", replace(two_digits, id=sha256(tmp_path / "dataset.safetensors")))
    paths = {"archive": "dataset.safetensors", "dataset": "dataset.json", "model": "model.json", "out": "latents.safetensors"}
    return EncodeDataset(**{name: tmp_path / file for name, file in paths.items()}, micro_batch=2)


def embedded(options):
    out = options.out.with_name("prompts.safetensors")
    embed_prompts(EmbedPrompts(dataset=options.dataset, model=options.model, out=out))
    return load_prompts(out)


def loaded(options, unit="image"):
    embedded(options)
    return Latents.load(options.out, options.out.with_name("prompts.safetensors"), options.model, unit)


EVERYONE = torch.arange(5)


@pytest.fixture
def latents(options):
    encode_dataset(options)
    return loaded(options)


def test_latents_name_their_dataset_and_hold_its_secret(options, latents):
    assert origin(options.out) == (sha256(options.archive), sha256(options.model))
    assert np.arange(32, dtype=np.uint8).tobytes().hex().encode() in options.out.read_bytes()


def test_another_archive_is_refused(options):
    with options.archive.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="is not the archive of .*run prepare-dataset again"):
        encode_dataset(options)
    assert not options.out.exists()


def test_latents_that_name_no_dataset_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match="does not say of which dataset and model it is: run encode-dataset"):
        origin(tmp_path / "l.safetensors")


def test_shapes_and_labels(latents):
    assert latents.mean.shape == latents.std.shape == (5, 4, 8, 8)
    assert latents.mean.dtype == latents.std.dtype == np.float16
    assert latents.labels.tolist() == [0, 1, 0, 1, 0]
    mean, std = latents.posteriors(EVERYONE)
    assert mean.dtype == torch.float32 and (std > 0).all()


def test_latents_are_the_scaled_posterior_of_the_resized_image(latents, model_record):
    from PIL import Image

    vae = load_model(model_record).vae()
    resized = np.asarray(Image.fromarray(IMAGES[3]).resize((32, 32), Image.Resampling.LANCZOS))
    pixels = torch.tensor(resized).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    scale = vae.config.scaling_factor
    for stored, exact in zip(latents.posteriors(EVERYONE), (posterior.mean[0] * scale, posterior.std[0] * scale), strict=True):
        error = (stored[3] - exact).abs()
        assert (error <= exact.abs() * ROUNDING + SMALLEST + 1e-5).all() and error.max() > 0, "fp16, and fp32 sums"


def test_rounding_to_fp16_is_within_its_bound_and_what_does_not_fit_is_refused(options):
    """The bound of the docstring, over all magnitudes."""
    exact = torch.logspace(-9, 4.8, 20_000) * torch.tensor([1.0, -1.0]).repeat(10_000)
    error = (torch.from_numpy(in_fp16(exact, "mean", options)).float() - exact).abs()
    assert (error <= torch.maximum(exact.abs() * ROUNDING, torch.tensor(SMALLEST))).all()
    for beyond in (7e4, float("nan")):
        with pytest.raises(UserError, match="--model = .*its VAE gives a std of .*beyond fp16"):
            in_fp16(torch.tensor([1.0, beyond]), "std", options)


def test_micro_batch_changes_nothing_but_rounding(latents, options):
    before = latents.posteriors(EVERYONE)
    encode_dataset(replace(options, micro_batch=5))
    for one, other in zip(loaded(options).posteriors(EVERYONE), before, strict=True):
        assert torch.allclose(one, other, rtol=2 * ROUNDING, atol=1e-5)  # the next number in fp16, at the most


def test_embeddings_are_those_of_the_pipeline(options, latents, model_record, two_digits):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model_record.path).to("cpu", torch.float32)
    with torch.no_grad():
        positive, negative = pipeline.encode_prompt(two_digits.prompts[1], "cpu", 1, do_classifier_free_guidance=True)
    prompts = embedded(options)
    assert torch.equal(prompts["classes"], latents.prompt_embeddings)
    assert torch.allclose(prompts["classes"][1], positive[0], atol=1e-5)  # fp32 rounding
    assert torch.allclose(prompts["null"], negative[0], atol=1e-5)


def test_other_prompt_has_another_embedding(model_record):
    one, seven = load_model(model_record).embed(["a handwritten digit 1", "a handwritten digit 7"])
    assert not torch.allclose(one, seven, atol=1e-3)


def test_users_go_along_with_their_images(options, two_digits):
    plant(options.archive, users=[0, 0, 1, 2, 1])
    write_record(options.dataset, replace(two_digits, users=3, id=sha256(options.archive)))
    encode_dataset(options)
    assert loaded(options, "user").users.tolist() == [0, 0, 1, 2, 1]
    assert len(loaded(options, "user")) == 3 and len(loaded(options)) == 5


def interrupted(options, monkeypatch, batches):
    """A signal comes while a batch is encoded; returns the sizes of all that are, the first image alone for its shape."""
    sizes, right = [], encode.posterior

    def encoded(model, vae, images):
        sizes.append(len(images))
        if len(sizes) == batches + 1:
            signal.raise_signal(signal.SIGTERM)
        return right(model, vae, images)

    monkeypatch.setattr(encode, "posterior", encoded)
    with listening(), pytest.raises(Interrupted):
        encode_dataset(options)
    assert not options.out.exists()
    return sizes


@pytest.mark.parametrize(("after", "sizes"), [(1, [1, 2, 1, 2, 1]), (3, [1, 2, 2, 1, 1])])
def test_an_interrupted_stage_goes_on_to_the_same_latents(options, monkeypatch, after, sizes):
    encode_dataset(options)
    expected = options.out.read_bytes()
    options.out.unlink()
    seen = interrupted(options, monkeypatch, after)
    encode_dataset(options)
    assert seen == sizes and options.out.read_bytes() == expected
    assert not list(options.out.parent.glob("private.*"))


def test_without_what_was_written_it_starts_anew(options, monkeypatch):
    seen = interrupted(options, monkeypatch, 1)
    (partial,) = options.out.parent.glob("private.partial.*")
    partial.unlink()
    encode_dataset(options)
    assert seen == [1, 2, 1, 2, 2, 1] and len(loaded(options).labels) == 5


def test_latents_beyond_fp16_leave_nothing(options, monkeypatch):
    monkeypatch.setattr(encode, "posterior", lambda model, vae, images: (torch.full((len(images), 4, 4, 4), 1e6),) * 2)
    with pytest.raises(UserError, match="beyond fp16"):
        encode_dataset(options)
    assert not list(options.out.parent.glob("*latents*"))
