import pytest
import torch

from dpsapf.evaluation.network import FeatureNetwork, load_feature_network
from dpsapf.experiment.stages import PretrainPublicModel
from dpsapf.pretraining import card, pretrain
from dpsapf.pretraining.architecture import build
from dpsapf.pretraining.public_data import CLASSES, draw_example
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    return PretrainPublicModel(
        out=folder / "public-mini",
        feature_network=folder / "features.safetensors",
        images=64,
        autoencoder_steps=2,
        unet_steps=2,
        feature_steps=2,
        batch=8,
        threads=1,
    )


@pytest.fixture(scope="module")
def trained(options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "SHOWN", ("a handwritten digit 7", "a photo of a cat"))
        patch.setattr(card, "SHOWN_STEPS", 2)
        pretrain.pretrain_public_model(options)
    return options


@pytest.fixture(scope="module")
def data(options):
    return pretrain.draw_images(options)


def test_writes_a_pipeline_card_samples_and_log(trained):
    from diffusers import StableDiffusionPipeline

    assert StableDiffusionPipeline.from_pretrained(trained.out).vae.config.scaling_factor > 0
    assert "| unet | 2 |" in (trained.out / "README.md").read_text()
    lines = (trained.out / "training_log.csv").read_text().splitlines()
    assert lines[0] == "part,step,loss"
    assert [line.split(",")[:2] for line in lines[1:]] == [["vae", "2"], ["unet", "2"], ["features", "2"]]
    assert (trained.out / "samples.png").stat().st_size > 1000
    assert [path.name for path in trained.out.parent.iterdir() if path.name.startswith(".")] == []


def test_writes_a_feature_network_that_loads(trained):
    network = load_feature_network(trained.feature_network, None)
    assert network.classify(torch.zeros(1, 3, 32, 32)).shape == (1, len(CLASSES))
    assert trained.feature_network.stat().st_size < 2e6


def test_does_not_overwrite_a_model(trained):
    with pytest.raises(UserError, match="exists"):
        pretrain.pretrain_public_model(trained)


def test_drawn_images_are_those_of_their_index(data, options):
    for index in (0, 17, 63):
        example = draw_example(options.seed, index)
        assert torch.equal(data.images[index].permute(1, 2, 0), torch.from_numpy(example.image))
        assert data.prompts[data.prompt_ids[index]] == example.prompt
        assert data.labels[index] == example.label
    assert data.prompts[0] == ""
    assert data.pixels(torch.arange(64)).abs().max() <= 1


@pytest.fixture
def parts(tmp_path, data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(tmp_path, data.prompts)


def test_latents_have_unit_spread_after_scaling(parts, data, options):
    pretrain.train_autoencoder(parts, data, options)
    mean, std = pretrain.encode(parts, data)
    assert mean.shape == std.shape == (64, 4, 8, 8)
    assert (mean * parts.vae.config.scaling_factor).std().item() == pytest.approx(1, abs=1e-4)


def test_autoencoder_learns(parts, data, options):
    def error():
        with torch.no_grad():
            pixels = data.pixels(torch.arange(16))
            return (parts.vae.decode(parts.vae.encode(pixels).latent_dist.mean).sample - pixels).abs().mean().item()

    before = error()
    pretrain.train_autoencoder(parts, data, replace(options, autoencoder_steps=20))
    assert error() < 0.9 * before


def test_denoiser_keeps_the_average_and_trains_text_and_unet(parts, data, options):
    first = {name: [p.clone() for p in getattr(parts, name).parameters()] for name in ("unet", "text_encoder")}
    log = pretrain.train_denoiser(parts, data, options)
    assert log.steps == 2
    for name, before in first.items():
        moved = [(p - b).abs().max().item() for p, b in zip(getattr(parts, name).parameters(), before, strict=True)]
        assert 0 < max(moved) < 2 * options.learning_rate * (1 - pretrain.AVERAGE_DECAY) * 3  # AdamW moves <= lr a step
    assert not parts.unet.training


def test_minutes_end_the_training_early(parts, data, options):
    log = pretrain.train_denoiser(parts, data, replace(options, unet_steps=1000, minutes=1e-9))
    assert log.steps == 1
    assert len(log.losses) == 1


@pytest.mark.slow
def test_feature_network_learns(data, options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FeatureNetwork(len(CLASSES))
    log = pretrain.train_features(network, data, replace(options, feature_steps=100, batch=32))
    assert log.losses[-1] < 0.75 * torch.log(torch.tensor(len(CLASSES))).item()


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [pretrain._schedule(step / 1000) for step in range(1, 1001)]
    assert rates[9] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1, abs=2e-3)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert pretrain._schedule(1.2) == pytest.approx(0, abs=1e-12)
