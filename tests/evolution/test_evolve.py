"""From the plan over votes and audit to published images, on an untrained public-mini; and what the audit refuses."""

import signal

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation.features import extract_features
from dpsapf.evolution import votes
from dpsapf.evolution.api import ImageApi, image_api
from dpsapf.evolution.evolve import degrees, evolve, wordings
from dpsapf.evolution.publish import publish_population
from dpsapf.experiment.records import DatasetRecord, Ledger, Measured, ModelRecord, Plan, Spend, Timing
from dpsapf.experiment.registries import ProtocolEntry, entry
from dpsapf.privacy import meter
from dpsapf.privacy.audit import audit_privacy
from dpsapf.privacy.compose import prior_releases
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import grid
from dpsapf.sampling.sample import fitted
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.interruption import Interrupted, listening
from dpsapf.support.randomness import numpy_generator, torch_generator
from dpsapf.support.records import read_record, write_record
from tests.evolution.conftest import IMAGES, auditing, evolving, planned, publishing

LABELS = np.array([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(("method", "bins"), [("pe", 6), ("aug-pe", 18)])
def test_images_are_published_after_the_audit_and_only_then(folder, method, bins):
    planned(folder, method)
    evolve(evolving(folder, variants=3))
    audit_privacy(auditing(folder, variants=3))
    publish_population(publishing(folder))
    with np.load(folder / "samples.npz", allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    assert images.shape == (6, 28, 28, 3) and images.dtype == np.uint8 and (images == images[..., :1]).all()
    assert labels.tolist() == LABELS.tolist() and len(np.unique(images, axis=0)) > 1
    found, spend = read_record(folder / "ledger.json", Ledger), read_record(folder / "spend.json", Spend)
    assert found.releases == (spend.release,) == read_record(folder / "plan.json", Plan).releases
    assert max(found.spent_epsilon[name] for name in ("pld", "prv")) <= 10 and found.spent_epsilon["pld"] > 9.9
    assert found.digests == {"population": sha256(folder / "population.safetensors")} and found.weights_digest is None
    assert (spend.numbers, spend.trainable_parameters, spend.population) == (bins, 0, IMAGES)
    assert load_file(folder / "population.safetensors")["votes"].shape == (2, bins)
    timing = read_record(folder / "timing.json", Timing)
    assert (timing.ledger, timing.samples) == (sha256(folder / "ledger.json"), sha256(folder / "samples.npz"))
    assert (folder / "sheet.png").stat().st_size > 0


def test_the_plan_is_of_one_vote_of_everybody_in_every_round(folder):
    planned(folder, evolution={"iterations": 5})
    plan = read_record(folder / "plan.json", Plan)
    (release,) = plan.releases
    assert (release.name, release.mechanism, release.noise) == ("pe-histogram", "gaussian", "seed")
    assert (release.sensitivity, release.sampling_rate, release.steps) == (1.0, 1.0, 5)
    assert 9.9 < plan.planned_epsilon["pld"] <= 9.99 and plan.clipping == "none" and plan.dp_sgd_noise_alone is None
    planned(folder, evolution={"iterations": 20})
    assert read_record(folder / "plan.json", Plan).releases[0].noise_multiplier == pytest.approx(
        2 * release.noise_multiplier, rel=0.01
    ), "Gaussians of rate 1 compose by their squares"


def test_an_epsilon_below_what_votes_can_meet_is_refused_by_their_name(folder):
    with pytest.raises(UserError, match="a histogram of votes in each round with noise multiplier 2000 costs"):
        planned(folder, epsilon=0.012, evolution={"iterations": 20000})


def test_a_rerun_gives_the_same_bytes_and_system_noise_does_not(folder):
    planned(folder)
    evolve(evolving(folder))
    expected = sha256(folder / "population.safetensors")
    evolve(evolving(folder))
    assert sha256(folder / "population.safetensors") == expected
    planned(folder, noise="system")
    evolve(evolving(folder))
    assert sha256(folder / "population.safetensors") != expected
    audit_privacy(auditing(folder))
    assert read_record(folder / "ledger.json", Ledger).not_for_release is None


def test_what_was_released_with_real_noise_is_put_back_and_so_is_its_plan(folder):
    planned(folder, noise="system")
    evolve(evolving(folder))
    names = ("plan.json", "population.safetensors", "spend.json", "private.json")
    first = {name: sha256(folder / name) for name in names}
    for name in names:
        (folder / name).unlink()
    planned(folder, noise="system")
    evolve(evolving(folder))
    assert {name: sha256(folder / name) for name in names} == first
    audit_privacy(auditing(folder))
    ledger = sha256(folder / "ledger.json")
    audit_privacy(auditing(folder))
    assert sha256(folder / "ledger.json") == ledger


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evolution": {"iterations": 3}}, "pe-histogram: steps = 3: .* was released with 2"),
        ({"delta": 1e-3}, r"delta = 0\.001: .* was released with"),
        ({"noise": "seed"}, "noise = 'seed': .* was released with 'system'"),
    ],
)
def test_another_plan_of_what_was_released_is_refused(folder, changes, message):
    planned(folder, noise="system")
    evolve(evolving(folder))
    before = sha256(folder / "plan.json")
    with pytest.raises(UserError, match=message):
        planned(folder, **({"noise": "system"} | changes))
    assert sha256(folder / "plan.json") == before


def test_users_vote_once_each(folder):
    planned(folder, unit="user")
    evolve(evolving(folder))
    audit_privacy(auditing(folder))
    measured = read_record(folder / "private.json", Measured)
    assert measured.batches == (5, 5) and read_record(folder / "ledger.json", Ledger).unit == "user"


def parts(folder, method):
    """What an independent run of evolve needs: the interfaces, features of synthetic images, and the private ones."""
    dataset, options = read_record(folder / "dataset.json", DatasetRecord), evolving(folder)
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    prompts = wordings(method, dataset, options.prompt_prefixes)
    api = image_api(read_record(folder / "model.json", ModelRecord), prompts, 0, options)
    private = read_part(folder / "dataset.safetensors", "train")
    return api, lambda images: extract_features(fitted(images, 28, 1), protocol, "cpu"), private


def exact(features, private, seen, labels):
    """Votes by brute force in fp64."""
    mine = features(private[:])
    distances = ((mine[:, None] - seen[None]) ** 2).sum(2)
    distances[private.labels[:, None] != labels] = np.inf
    return np.bincount(distances.argmin(1), minlength=len(labels))


def torch_noise(step, release, bins):
    """Noise of a round, as whole steps of the grid."""
    normals = torch.randn(bins, generator=torch_generator(0, "evolve", step, "privacy noise"), dtype=torch.float64).numpy()
    spacing = grid(1.0, bins)
    return np.round(normals * release.noise_multiplier / spacing) * spacing


def test_pe_is_its_algorithm_written_out(folder):
    planned(folder)
    evolve(evolving(folder, lookahead=2))
    population, release = load_file(folder / "population.safetensors"), read_record(folder / "spend.json", Spend).release
    api, features, private = parts(folder, "pe")
    images = api.images(LABELS)
    for step, degree in enumerate((1.0, 0.5)):
        ahead = [features(api.variations(images, LABELS, degree, step, "lookahead", place)) for place in range(2)]
        noisy = exact(features, private, np.mean(ahead, axis=0), LABELS) + torch_noise(step, release, 6)
        assert (population["votes"][step] == noisy.astype(np.float32)).all()  # as they are kept
        weights, draw, chosen = (
            np.maximum(noisy - 1.4 * release.noise_multiplier, 0),
            numpy_generator(0, "evolve", step, "draw"),
            [],
        )
        for rows in (slice(0, 3), slice(3, 6)):
            part = weights[rows] if weights[rows].any() else np.ones(3)
            chosen += (rows.start + draw.choice(3, 3, p=part / part.sum())).tolist()
        images = api.variations(images[chosen], LABELS, degree, step, "vary")
    assert (population["images"] == fitted(images, 28, 1)).all()


def test_aug_pe_is_its_algorithm_written_out(folder):
    planned(folder, "aug-pe")
    evolve(evolving(folder, variants=3))
    population, release = load_file(folder / "population.safetensors"), read_record(folder / "spend.json", Spend).release
    api, features, private = parts(folder, "aug-pe")
    images = api.images(LABELS)
    for step, degree in enumerate((1.0, 0.5)):
        more = [api.variations(images, LABELS, degree, step, "vary", place) for place in (1, 2)]
        images, labels = np.concatenate([images, *more]), np.concatenate([LABELS] * 3)
        noisy = exact(features, private, features(images), labels) + torch_noise(step, release, 18)
        assert (population["votes"][step] == noisy.astype(np.float32)).all()  # as they are kept
        best = [sorted(np.flatnonzero(labels == label), key=lambda row: -noisy[row])[:3] for label in (0, 1)]
        images = images[np.concatenate(best)]
    assert (population["images"] == fitted(images, 28, 1)).all()


def test_degrees_fall_linearly_and_prompts_are_reworded_for_aug_pe_alone(folder):
    options = evolving(folder, first_degree=0.9, last_degree=0.6)
    assert degrees(4, options) == pytest.approx([0.9, 0.8, 0.7, 0.6]) and degrees(1, options) == pytest.approx([0.9])
    dataset = read_record(folder / "dataset.json", DatasetRecord)
    assert wordings("pe", dataset, ("a photo of",)) == [dataset.prompts]
    reworded = ("a photo of a handwritten digit 1", "a photo of a handwritten digit 7")
    assert wordings("aug-pe", dataset, ("a photo of",)) == [dataset.prompts, reworded]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"count": 2, "steps": 1}, "variation degree = 0.5: of 1 sampler steps it leaves none: must be at least 1"),
        ({"archive": "dataset.json"}, "is not the archive of --dataset and --plan"),
    ],
)
def test_what_cannot_evolve_is_refused(folder, changes, told):
    planned(folder)
    changes = {name: folder / value if name == "archive" else value for name, value in changes.items()}
    with pytest.raises(UserError, match=told):
        evolve(evolving(folder, **changes))
    assert not (folder / "population.safetensors").exists()


def test_a_class_without_an_image_is_refused(folder):
    planned(folder)
    three = replace(read_record(folder / "dataset.json", DatasetRecord), classes=("1", "7", "9"))
    write_record(folder / "dataset.json", three)
    with pytest.raises(UserError, match="count = 2: two has 3 classes"):
        evolve(evolving(folder, count=2))


def test_a_plan_without_votes_is_refused(folder, plan):
    write_record(folder / "plan.json", plan)
    with pytest.raises(UserError, match="--plan = 'dp-sapf': no image evolves by this method"):
        evolve(evolving(folder))


@pytest.fixture
def evolved(folder):
    planned(folder)
    evolve(evolving(folder))
    return folder


def change(folder, name, alter):
    """Change an array of the population."""
    path = folder / "population.safetensors"
    arrays = load_file(path)
    alter(arrays[name])
    save_file(arrays, path)


@pytest.mark.parametrize("name", ["votes", "images", "labels"])
def test_changed_votes_or_images_pass_no_audit(evolved, name):
    change(evolved, name, lambda array: array.__setitem__((0,) * array.ndim, 1 + array[(0,) * array.ndim] % 2))
    with pytest.raises(UserError, match="population.safetensors = .*is not the file that was recorded"):
        audit_privacy(auditing(evolved))
    assert not (evolved / "ledger.json").exists()


def test_images_changed_after_the_audit_are_not_published(evolved):
    audit_privacy(auditing(evolved))
    change(evolved, "images", lambda array: array.fill(7))
    with pytest.raises(UserError, match="--population.*audit again"):
        publish_population(publishing(evolved))
    assert not (evolved / "samples.npz").exists()


def test_a_ledger_that_passed_no_population_publishes_none(evolved):
    audit_privacy(auditing(evolved))
    ledger = read_record(evolved / "ledger.json", Ledger)
    write_record(evolved / "ledger.json", replace(ledger, digests={}))
    with pytest.raises(UserError, match="the audit passed digest None"):
        publish_population(publishing(evolved))


def test_a_population_that_is_not_given_or_is_of_another_plan_passes_no_audit(evolved):
    with pytest.raises(UserError, match="--population = None"):
        audit_privacy(auditing(evolved, population=None))
    write_record(evolved / "plan.json", replace(read_record(evolved / "plan.json", Plan), relation="another"))
    with pytest.raises(UserError, match="--plan.*run the stages after it again"):
        audit_privacy(auditing(evolved))


def test_a_population_of_another_run_passes_no_audit(evolved):
    planned(evolved, seed=3)
    with pytest.raises(UserError, match="subject"):
        audit_privacy(auditing(evolved))


def test_what_votes_cost_counts_in_a_composition(evolved):
    audit_privacy(auditing(evolved))
    ledger = read_record(evolved / "ledger.json", Ledger)
    twice = [evolved / "ledger.json", evolved / "spend.json"]
    assert prior_releases(twice, ledger.dataset_id, "image") == [*ledger.releases], "one release, told twice"


def test_two_votes_of_an_image_pass_no_audit(folder, monkeypatch):
    planned(folder)
    found = votes.nearest
    monkeypatch.setattr(votes, "nearest", lambda *points: found(*points).repeat(2))
    evolve(evolving(folder))
    with pytest.raises(UserError, match="surplus = "):
        audit_privacy(auditing(folder))


def test_votes_without_noise_pass_no_audit(folder, monkeypatch):
    planned(folder)
    monkeypatch.setattr(meter, "add_gaussian_noise", lambda value, *rest: value.clone())
    evolve(evolving(folder))
    with pytest.raises(UserError, match="squares = 0.0: the noise was 0 times what the release says"):
        audit_privacy(auditing(folder))


def test_a_missing_voter_passes_no_audit(folder, monkeypatch):
    planned(folder)
    drawn = Meter.batch
    monkeypatch.setattr(Meter, "batch", lambda meter, rate, generator: drawn(meter, 0.5, generator))
    evolve(evolving(folder))
    with pytest.raises(UserError, match="sampling_rate = 0.5: the plan has 1.0"):
        audit_privacy(auditing(folder))


def test_a_small_generation_is_varied_until_there_are_enough(folder):
    planned(folder)
    evolve(evolving(folder, count=11, generation=4, first_degree=0.8))
    population = load_file(folder / "population.safetensors")
    assert population["votes"].shape == (2, 4) and population["images"].shape == (11, 28, 28, 3)
    assert population["labels"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1], "six of class 0, five of class 1"
    evolve(evolving(folder, count=4, first_degree=0.8))
    last = load_file(folder / "population.safetensors")["images"]
    assert (population["images"][:4] == last).all(), "the generation itself comes first"
    assert len(np.unique(population["images"], axis=0)) == len(np.unique(last, axis=0)) + 7, "no two variations are equal"


def test_a_generation_holds_no_more_than_is_published(folder):
    planned(folder)
    with pytest.raises(UserError, match="generation.*must be at most the images that are published: 6"):
        evolve(evolving(folder, generation=12))
    assert not (folder / "population.safetensors").exists()


def killed(monkeypatch, options, rounds):
    """Evolve, and be killed in the next round after these; the numbers of the rounds that are voted on from then on."""
    voted, right = [], votes.Electorate.vote

    def vote(self, features, labels, step):
        if step == rounds:
            raise KeyboardInterrupt
        return right(self, features, labels, step)

    monkeypatch.setattr(votes.Electorate, "vote", vote)
    with pytest.raises(KeyboardInterrupt):
        evolve(options)
    monkeypatch.setattr(votes.Electorate, "vote", lambda self, *given: voted.append(given[-1]) or right(self, *given))
    return voted


@pytest.mark.parametrize("method", ["pe", "aug-pe"])
def test_a_killed_run_goes_on_from_its_last_round(folder, monkeypatch, method):
    planned(folder, method, evolution={"iterations": 3})
    evolve(evolving(folder))
    expected, measured = load_file(folder / "population.safetensors"), read_record(folder / "private.json", Measured)
    (folder / "population.safetensors").unlink()
    voted = killed(monkeypatch, evolving(folder), 2)
    assert not (folder / "population.safetensors").exists()
    evolve(evolving(folder))
    assert voted == [2]
    found = load_file(folder / "population.safetensors")
    assert all((found[name] == expected[name]).all() for name in expected)
    again = read_record(folder / "private.json", Measured)
    assert replace(again, salt=measured.salt, seconds=measured.seconds) == measured
    assert not list(folder.glob("private.checkpoint*"))
    audit_privacy(auditing(folder))


def test_variations_without_votes_go_on_where_they_were(folder, monkeypatch):
    """Asked to end in the second of four copies: that one is finished, and the others are made by the next start."""
    planned(folder)
    settings = {"count": 20, "generation": 4, "first_degree": 0.8, "checkpoint_minutes": 1e-6}
    evolve(evolving(folder, **settings))
    expected = load_file(folder / "population.safetensors")
    (folder / "population.safetensors").unlink()
    made, right = [], ImageApi.variations

    def variations(self, images, labels, degree, step, *rest):
        if step == "more":
            made.append(rest[-1])
            if rest[-1] == 2 and made.count(2) == 1:
                signal.raise_signal(signal.SIGTERM)
        return right(self, images, labels, degree, step, *rest)

    monkeypatch.setattr(ImageApi, "variations", variations)
    with pytest.raises(Interrupted, match="goes on from"), listening():
        evolve(evolving(folder, **settings))
    assert made == [1, 2] and not (folder / "population.safetensors").exists()
    monkeypatch.setattr(votes.Electorate, "vote", lambda *_: pytest.fail("voted again"))
    evolve(evolving(folder, **settings))
    assert made == [1, 2, 3, 4]
    found = load_file(folder / "population.safetensors")
    assert all((found[name] == expected[name]).all() for name in ("votes", "labels"))
    assert (found["images"][:12] == expected["images"][:12]).all(), "what was there is kept"
    assert np.abs(found["images"].astype(int) - expected["images"]).max() <= 1, "a rounding may fall otherwise in a new process"
    assert not list(folder.glob("private.checkpoint*")) and not list(folder.glob("private.partial*"))


def test_a_checkpoint_of_other_settings_is_refused_by_name(folder, monkeypatch):
    planned(folder)
    voted = killed(monkeypatch, evolving(folder, threshold=0.0), 1)
    with pytest.raises(UserError, match="--threshold.*was made with 0.0"):
        evolve(evolving(folder))
    assert voted == [] and not (folder / "population.safetensors").exists()
