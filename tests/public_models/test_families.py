"""Each family's pieces from a folder, against diffusers' own pipeline on the same folder with prompts."""

import numpy as np
import pytest
import torch

from dpsapf.experiment.stages import EmbedPrompts, EncodeDataset
from dpsapf.public_models.encode import embed_prompts, encode_dataset
from dpsapf.public_models.families import load_model
from dpsapf.public_models.latents import Latents, draw_batch, load_prompts
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import write_record
from tests.prepared_dataset import write_dataset

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
TEXTS = ("a photo of a cat", "a red circle on a blue background")  # copied for Z-Image's pipeline, which changes its list
CLOSE = 1e-5  # of pixels in [0, 1]: fp32 sums of texts that are embedded one by one, or all together
W = 3.0


@pytest.fixture(params=["pndm", "ddim", "v", "z-image"])
def model(request, prepare, changed):
    """Models of both families; ``pndm`` is as SD v1-5 is published: PNDM, and a UNet for larger images than its entry's."""
    if request.param == "z-image":
        return load_model(prepare(path=str(changed("z-image", INDEX)))[0])
    if request.param == "pndm":
        folder = changed("stable-diffusion", INDEX, scheduler=["diffusers", "PNDMScheduler"])
        changed("stable-diffusion", SCHEDULER, _class_name="PNDMScheduler", skip_prk_steps=True, clip_sample=None)
        changed("stable-diffusion", UNET, sample_size=16)
    else:
        folder = changed("stable-diffusion", SCHEDULER, prediction_type="epsilon" if request.param == "ddim" else "v_prediction")
    return load_model(prepare(path=str(folder))[0])


def generators():
    return [torch_generator(0, "sample", index) for index in range(2)]


def own_pipeline(model, cls=None):
    """Diffusers' pipeline of the whole folder, fp32."""
    from diffusers import DiffusionPipeline

    pipeline = (cls or DiffusionPipeline).from_pretrained(model.record.path).to("cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def own_guidance(model):
    return W - 1 if model.name == "z-image" else W


def drawn(model, sampler="model", **changes):
    embeddings = model.embed([*TEXTS, ""])
    pipeline = model.text_to_image(model.denoiser(), "cpu", sampler)
    settings = {"guidance_scale": W, "steps": 4, "generators": generators()} | changes
    return model.generate(pipeline, embeddings[:-1], embeddings[-1], **settings)


def test_images_are_those_of_diffusers_own_pipeline(model):
    side = model.record.resolution
    settings = {"num_inference_steps": 4, "guidance_scale": own_guidance(model), "generator": generators(), "output_type": "np"}
    theirs = own_pipeline(model)(list(TEXTS), height=side, width=side, **settings).images
    ours = drawn(model)
    assert ours.shape == (2, 32, 32, 3), "at the entry's resolution, whatever the denoiser's config says"
    np.testing.assert_allclose(ours, theirs, atol=CLOSE)
    assert abs(ours - drawn(model, guidance_scale=1.0)).max() > 100 * CLOSE, "guidance is seen"
    assert abs(ours[0] - ours[1]).max() > 100 * CLOSE


def test_variations_are_those_of_diffusers_own_pipeline(model):
    from diffusers import AutoPipelineForImage2Image

    pixels = np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32)
    size = {"height": 32, "width": 32} if model.name == "z-image" else {}
    settings = {"num_inference_steps": 6, "guidance_scale": own_guidance(model), "generator": generators(), "output_type": "np"}
    pipeline = AutoPipelineForImage2Image.from_pipe(own_pipeline(model))
    theirs = pipeline(list(TEXTS), image=pixels, strength=0.5, **settings, **size).images
    embeddings = model.embed([*TEXTS, ""])
    changing = model.image_to_image(model.text_to_image(model.denoiser(), "cpu"))
    given = {"guidance_scale": W, "steps": 6, "generators": generators()}
    ours = model.vary(changing, pixels, 0.5, embeddings[:-1], embeddings[-1], **given)
    np.testing.assert_allclose(ours, theirs, atol=CLOSE)
    other = model.vary(
        changing, pixels[::-1].copy(), 0.5, embeddings[:-1], embeddings[-1], **given | {"generators": generators()}
    )
    assert abs(ours - other).max() > 100 * CLOSE


def test_a_family_without_variations_in_diffusers_says_so(model, monkeypatch):
    def absent(pipeline):
        raise ValueError("AutoPipeline can't find a pipeline")

    monkeypatch.setattr("diffusers.AutoPipelineForImage2Image.from_pipe", absent)
    with pytest.raises(UserError, match=rf"family = '{model.name}': has no pipeline from image to image.*install a newer one"):
        model.image_to_image(None)


def test_the_sampler_is_the_models_own_or_the_one_that_is_named(model):
    published = type(own_pipeline(model).scheduler).__name__
    assert type(model.text_to_image(None, "cpu").scheduler).__name__ == published
    if model.name == "z-image":
        with pytest.raises(UserError, match="sampler = 'ddim': family z-image matches flows.*use model"):
            model.text_to_image(None, "cpu", "ddim")
        return
    assert type(model.text_to_image(None, "cpu", "ddim").scheduler).__name__ == "DDIMScheduler"
    apart = abs(drawn(model) - drawn(model, "ddim")).max()
    assert (apart == 0) == (published == "DDIMScheduler")


@pytest.fixture
def files(model, two_digits, tmp_path):
    """A dataset's latents and prompts under a model."""
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    archive = write_dataset(tmp_path / "dataset.safetensors", {"train": (images, np.arange(5) % 2)}, None)
    write_record(tmp_path / "dataset.json", replace(two_digits, id=sha256(archive)))
    paths = {"dataset": tmp_path / "dataset.json", "model": tmp_path / "model.json"}
    encode_dataset(EncodeDataset(archive=archive, out=tmp_path / "latents.safetensors", micro_batch=2, **paths))
    embed_prompts(EmbedPrompts(out=tmp_path / "prompts.safetensors", **paths))
    return images, tmp_path / "latents.safetensors", tmp_path / "prompts.safetensors"


def test_latents_decode_as_the_pipeline_decodes_and_have_a_finite_loss(model, files):
    """Both families' pipelines decode latents / scale + shift, which must be the posterior's own mean."""
    pixels, path, prompts = files
    latents = Latents.load(path, prompts, path.with_name("model.json"))
    mean, _ = latents.posteriors(torch.arange(5))
    config = model.vae().config
    unscaled = mean / config.scaling_factor + (config.shift_factor or 0.0)
    images = torch.from_numpy(np.stack([_resized(image) for image in pixels])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        own = model.vae().encode(images.float()).latent_dist.mean
    torch.testing.assert_close(unscaled, own, rtol=2e-3, atol=2e-3)  # stored in fp16
    assert abs(mean - own).max() > 1e-2, "they are scaled"
    batch = draw_batch(latents, torch.arange(5), 1, model.objective().timesteps, torch_generator(0))
    with torch.no_grad():
        losses = model.objective().loss(model.denoiser(), batch.rows(0, 5, "cpu"))
    assert losses.shape == (5,) and torch.isfinite(losses).all() and (losses > 0).all()


def _resized(image):
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.LANCZOS))


def test_prompts_are_embedded_as_by_the_pipeline(model, files, two_digits):
    stored, pipeline = load_prompts(files[2]), own_pipeline(model)
    for place, text in enumerate(two_digits.prompts):
        with torch.no_grad():
            own = pipeline.encode_prompt([text], "cpu", **_alone(model))[0][0]
        ours = stored["classes"][place]
        assert torch.allclose(ours[: len(own)], own, atol=1e-5) and not ours[len(own) :].any()
    with torch.no_grad():
        own = pipeline.encode_prompt([""], "cpu", **_alone(model))[0][0]
    assert torch.allclose(stored["null"][: len(own)], own, atol=1e-5)


def _alone(model):
    more = {} if model.name == "z-image" else {"num_images_per_prompt": 1}
    return {"do_classifier_free_guidance": False} | more
