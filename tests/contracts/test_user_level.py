"""The unit is a user: all images of one person count as one, in sampling, clipping, accounting and splits."""

import dataclasses

import pytest
import torch
from scipy import stats

from dpsapf.evolution.votes import Electorate
from dpsapf.experiment.records import Release
from dpsapf.experiment.stages import PlanPrivacy
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SeededNoise
from dpsapf.privacy.plan import default_delta, make_plan, population
from dpsapf.public_models.latents import Latents, draw_batch
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import write_record
from tests.tiny import tiny_latents, tiny_objective, tiny_record, tiny_unet, write_latents

IMAGES, BOUND = 12, 0.01
OWNERS = torch.tensor([0, 1, 0, 2, 0, 0, 1, 0, 3, 0, 2, 0])  # seven images of user 0, two of 1 and of 2, one of 3


def owned(users=OWNERS):
    return dataclasses.replace(tiny_latents(IMAGES), users=users)


def extreme(latents):
    """Make every image of user 0 pull all the same way, and hard."""
    mean = latents.mean.clone()
    mean[OWNERS == 0] = 50.0
    return dataclasses.replace(latents, mean=mean, labels=latents.labels.where(OWNERS != 0, 0))


def summed(latents, batch, multiplicity=1):
    """Clipped sum over a batch of units, with the same draws for whoever is in it."""
    unet = tiny_unet()
    parameters = dict(unet.named_parameters())
    objective, gradients = tiny_objective(), per_image_gradients(unet, parameters, None)
    everyone = draw_batch(latents, torch.arange(len(latents)), multiplicity, 1000, torch_generator(0, "pairs"))
    release = Release(name="dp-sgd", noise_multiplier=1e-9, sensitivity=BOUND, sampling_rate=0.5, steps=1)
    private_gradient(
        lambda rows: objective.loss(unet, rows),
        gradients,
        list(parameters.values()),
        everyone.units(batch, multiplicity, "cpu"),
        release,
        multiplicity=multiplicity,
        clipping="flat",
        micro_batch=5,
        device="cpu",
        noise=SeededNoise(torch_generator(0, "noise")),
        meter=Meter(1),  # the mean over one is the sum
    )
    return torch.cat([parameter.grad.flatten() for parameter in parameters.values()]).double()


@pytest.mark.parametrize("multiplicity", [1, 3])
def test_all_images_of_a_user_together_add_at_most_the_bound(multiplicity):
    latents = extreme(owned())
    change = summed(latents, torch.arange(4), multiplicity) - summed(latents, torch.arange(1, 4), multiplicity)
    assert 0.9 * BOUND < change.norm() <= BOUND


def test_all_images_of_a_user_together_have_one_vote():
    """They alone are near the first synthetic image, whose votes are counted over many rounds."""
    release = Release(name="pe-histogram", noise_multiplier=1e-6, sensitivity=1.0, sampling_rate=1.0, steps=50, noise="system")
    features, same = torch.where(OWNERS[:, None] == 0, 0.0, 1.0), torch.zeros(IMAGES, dtype=torch.int64)
    voters = Electorate(features, same, OWNERS.numpy(), release, "system", 0, Meter(4), "cpu")
    for step in range(release.steps):
        (votes,) = voters.vote(torch.tensor([[0.0], [1.0]]), torch.zeros(2, dtype=torch.int64), step).values
        assert votes.tolist() == pytest.approx([1, 3], abs=1e-3)


def test_with_images_as_units_a_user_adds_more():
    """What the unit is for: the same data, and the same person's images, each clipped for itself."""
    latents = dataclasses.replace(extreme(owned()), users=None)
    others = torch.arange(IMAGES)[OWNERS != 0]
    assert (summed(latents, torch.arange(IMAGES)) - summed(latents, others)).norm() > 3 * BOUND


def test_units_are_counted():
    latents = owned()
    assert (len(latents), latents.unit) == (4, "user")
    assert (len(tiny_latents(IMAGES)), tiny_latents(IMAGES).unit) == (IMAGES, "image")


def test_each_pair_of_a_user_is_of_an_image_drawn_from_theirs():
    drawn = owned().images_of(torch.arange(4).repeat_interleave(3000), torch_generator(0, "draw")).view(4, 3000)
    for user, images in enumerate(drawn):
        own = torch.arange(IMAGES)[OWNERS.eq(user)].tolist()
        counts = images.bincount(minlength=IMAGES)
        assert counts.nonzero().flatten().tolist() == own, user
        assert len(own) == 1 or stats.chisquare(counts[own]).pvalue > 1e-3
    seven = drawn[0].view(-1, 2)
    assert 0.05 < (seven[:, 0] == seven[:, 1]).double().mean() < 0.25, "independent: a seventh are equal"


def test_an_image_is_its_own_unit_and_takes_no_draw():
    generator, units = torch_generator(0, "draw"), torch.tensor([3, 3, 1])
    state = generator.get_state()
    assert torch.equal(tiny_latents(IMAGES).images_of(units, generator), units) and torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("unit", ["image", "user"])
def test_the_unit_decides_whether_users_are_read(tmp_path, unit):
    write_latents(tmp_path, owned())
    write_record(tmp_path / "model.json", tiny_record())
    latents = Latents.load(tmp_path / "latents.safetensors", tmp_path / "prompts.safetensors", tmp_path / "model.json", unit)
    assert latents.unit == unit


def test_latents_without_users_are_refused(tmp_path):
    write_latents(tmp_path, tiny_latents())
    with pytest.raises(UserError, match="unit = 'user': the dataset names no users: add a CSV"):
        Latents.load(tmp_path / "latents.safetensors", tmp_path / "prompts.safetensors", tmp_path / "model.json", "user")


def test_a_plan_counts_users(dataset_record, run, monkeypatch):
    monkeypatch.setattr("dpsapf.privacy.calibrations.calibrate", lambda target, delta, build: build(1.0)[-1].noise_multiplier)
    record = replace(dataset_record, users=400)
    options = PlanPrivacy.model_construct(
        unit="user", steps=20, expected_batch_size=40, clipping="flat", clipping_norm=1.0, delta=None, noise="system"
    )
    plan = make_plan(run, record, [], options)
    assert (plan.unit, plan.population, plan.delta) == ("user", 400, default_delta(400))
    assert "zero out one user" in plan.relation and plan.releases[0].sampling_rate == pytest.approx(0.1)


@pytest.mark.parametrize("users", [None, 1])
def test_a_dataset_without_users_cannot_be_planned_for_them(dataset_record, users):
    with pytest.raises(UserError, match="unit = 'user'.*add a CSV of them"):
        population(replace(dataset_record, users=users), "user")
    assert population(replace(dataset_record, users=users), "image") == dataset_record.train


def test_users_of_one_image_each_are_what_images_are():
    """With one image a user, in order, sums are those of images bit by bit but for the draws."""
    own = torch.arange(IMAGES)
    drawn = owned(own).images_of(own.repeat_interleave(2), torch_generator(0))
    assert torch.equal(drawn, own.repeat_interleave(2))
