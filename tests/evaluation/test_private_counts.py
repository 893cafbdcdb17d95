"""Noisy counts of right predictions: what an image adds, what is released, and the refusals."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation import private_counts, utility
from dpsapf.evaluation.evaluate import evaluate
from dpsapf.evaluation.private_counts import PrivateCounts
from dpsapf.evaluation.reference import reference_features
from dpsapf.evaluation.training import Images
from dpsapf.experiment.records import DatasetRecord, Ledger, Measured, Release, Spend, Utility, ValidationLedger
from dpsapf.experiment.stages import AuditValidation, Evaluate, ReferenceFeatures
from dpsapf.privacy.accounting import DIGITS, epsilon, rounded_up
from dpsapf.privacy.audit import audit_validation
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import grid
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.interruption import Interrupted
from dpsapf.support.records import read_record, write_record

RELEASE = Release(name="validation", noise_multiplier=5.0, sensitivity=1.0, sampling_rate=1.0, steps=6, noise="seed")
RECIPE = {
    "classifiers": ["resnet", "resnext"],
    "steps": 6,
    "batch": 8,
    "optimizer": "adam",
    "learning_rate": 0.005,
    "selection": "noisy-private-validation",
    "checkpoints": 3,
}


class Brightness(torch.nn.Module):
    """Predicts class 1 for bright images."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def counts(pixels, labels, noise="seed", seed=0, **changes):
    images = Images.all(pixels, labels, "cpu")
    return PrivateCounts(images, replace(RELEASE, **changes), noise, seed, Meter(len(labels)))


def images(count=30):
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=count)
    pixels = generator.integers(0, 256, (count, 1, 1, 1)).repeat(8, 1).repeat(8, 2).repeat(3, 3)
    return pixels.astype(np.uint8), labels


def exact(pixels, labels):
    """The count by a plain loop."""
    return sum(int((image.mean() > 127.5) == bool(label)) for image, label in zip(pixels, labels, strict=True))


def test_a_count_is_that_of_right_predictions_with_noise_of_the_plan():
    pixels, labels = images()
    noisy = [counts(pixels, labels, seed=seed).judged("x", 0)(Brightness()) for seed in range(300)]
    assert np.mean(noisy) == pytest.approx(exact(pixels, labels), abs=4 * 5 / 300**0.5)
    assert np.std(noisy) == pytest.approx(5.0, rel=0.2)


def test_an_image_that_is_zeroed_out_changes_a_count_by_one_at_most():
    """The noise is the same: it depends on the seed and the step alone."""
    pixels, labels = images()
    whole = counts(pixels, labels).judged("x", 0)(Brightness())
    for out in range(len(labels)):
        kept = np.arange(len(labels)) != out
        changed = counts(pixels[kept], labels[kept]).judged("x", 0)(Brightness())
        assert whole - changed == exact(pixels[[out]], labels[[out]])  # to the last bit: all lie on one grid


def test_each_count_has_noise_of_its_own_and_each_evaluation_other_noise():
    pixels, labels = images()
    found = counts(pixels, labels)
    noisy = [found.judged("x", 0)(Brightness()) for _ in range(5)]
    assert len(set(noisy)) == 5 and [row["noisy_count"] for row in found.rows] == noisy
    assert counts(pixels, labels, seed=1).judged("x", 0)(Brightness()) not in noisy


def test_noise_of_the_operating_system_has_no_seed():
    pixels, labels = images()
    found = [counts(pixels, labels, noise="system") for _ in range(2)]
    one, other = (each.judged("x", 0)(Brightness()) for each in found)
    assert one != other and {each.meter.measured(1.0).secret for each in found} == {"system"}


def test_the_meter_sees_what_an_image_added_and_that_everybody_was_counted():
    pixels, labels = images()
    found = counts(pixels, labels)
    for _ in range(6):
        found.judged("x", 0)(Brightness())
    measured = found.meter.measured(1.0)
    assert measured.largest_contribution == 1 and measured.batches == (30,) * 6 and measured.participation == (0,) * 6 + (30,)
    assert measured.sizes == (1,) and len(measured.squares) == 6 and measured.secret == "seed"
    noise = np.array([row["noisy_count"] for row in found.rows]) - exact(pixels, labels)
    assert measured.squares == pytest.approx((noise / 5) ** 2) and not (noise % grid(1.0, 1)).any(), "on the grid"
    assert found.meter.release(RELEASE) == RELEASE


def test_a_checkpoint_goes_on_with_the_counts_that_were_made():
    pixels, labels = images()
    whole, first = counts(pixels, labels), counts(pixels, labels)
    for _ in range(4):
        whole.judged("x", 0)(Brightness())
    for _ in range(2):
        first.judged("x", 0)(Brightness())
    facts, tensors = first.state()
    second = counts(pixels, labels)
    second.restore(json.loads(json.dumps(facts)), tensors)
    for _ in range(2):
        second.judged("x", 0)(Brightness())
    assert second.rows == whole.rows
    seen = [replace(each.meter.measured(1.0), salt="", peak_memory_mb=1.0) for each in (second, whole)]
    assert seen[0] == seen[1]


@pytest.fixture
def counted(folder, plan):
    """A dataset and a protocol that counts, with the ledger of a run that reserved its counts."""
    registry = yaml.safe_load((folder / "protocols.yaml").read_text())
    registry["counts-v1"] = {key: value for key, value in registry["tiny-v1"].items() if not key.startswith("classifier")}
    registry["counts-v1"]["recipes"] = [RECIPE]
    (folder / "protocols.yaml").write_text(yaml.safe_dump(registry))
    data = sha256(folder / "dataset.safetensors")
    record = read_record(folder / "dataset.json", DatasetRecord)
    write_record(folder / "dataset.json", replace(record, id=data, train=60, validation=10, test=20))
    ledger = Ledger(
        run=plan.run,
        target_epsilon=10.0,
        delta=3.5e-5,
        relation="zero out one image",
        unit="image",
        noise="seed",
        not_for_release="seeded",
        dataset_id=data,
        prior=(),
        releases=plan.releases[:1],
        reserved=(RELEASE,),
        spent_epsilon={"pld": 3.0, "prv": 3.0},
        digests={},
        weights_digest=None,
        provenance={},
    )
    write_record(folder / "ledger.json", ledger)
    return folder


def options(folder, **changes):
    values = {
        "what": ("utility",),
        "synthetic": folder / "same.npz",
        "archive": folder / "dataset.safetensors",
        "dataset": folder / "dataset.json",
        "features": folder / "dataset.json",  # not read for utility
        "protocol": "counts-v1",
        "registry": folder / "protocols.yaml",
        "utility": folder / "utility.json",
        "ledger": folder / "ledger.json",
        "counts": folder / "validation.csv",
        "spend": folder / "validation_spend.json",
        "private": folder / "private_validation.json",
    }
    return Evaluate(**(values | changes))


def audit(folder, **changes):
    values = {
        "ledger": folder / "ledger.json",
        "dataset": folder / "dataset.json",
        "counts": folder / "validation.csv",
        "spend": folder / "validation_spend.json",
        "private": folder / "private_validation.json",
        "out": folder / "validation_ledger.json",
    }
    audit_validation(AuditValidation(**(values | changes)))
    return read_record(folder / "validation_ledger.json", ValidationLedger)


def change(path, cls, **changes):
    write_record(path, replace(read_record(path, cls), **changes))


def test_counts_are_made_as_planned_and_pass_the_audit(counted, plan):
    evaluate(options(counted))
    found = read_record(counted / "utility.json", Utility)
    table = pd.read_csv(counted / "validation.csv")
    assert table["classifier"].tolist() == ["resnet"] * 3 + ["resnext"] * 3 and found.selection == "noisy-private-validation"
    assert found.counts == sha256(counted / "validation.csv")
    record = audit(counted)
    assert record.counts == found.counts and record.release == RELEASE and record.not_for_release == "seeded"
    assert record.spent_epsilon["pld"] == rounded_up(epsilon("pld", [plan.releases[0], RELEASE], 3.5e-5), DIGITS)


def test_the_state_with_the_largest_noisy_count_is_tested(counted, monkeypatch):
    """Noise decides here: with another seed of it, other states are chosen."""
    states, kept = [], []
    right = private_counts.right

    def noted(model, images):
        states.append(model.state_dict()["fc.weight"].clone())
        return right(model, images)

    logits = utility.logits
    monkeypatch.setattr(private_counts, "right", noted)
    monkeypatch.setattr(utility, "logits", lambda model, images: kept.append(model.fc.weight.clone()) or logits(model, images))
    evaluate(options(counted))
    noisy = pd.read_csv(counted / "validation.csv")["noisy_count"].to_numpy().reshape(2, 3)
    for classifier, best in enumerate(noisy.argmax(1)):
        assert torch.equal(kept[classifier], states[3 * classifier + best])


def test_only_validation_images_are_counted_and_all_synthetic_ones_trained_on(counted, monkeypatch):
    seen, trained = [], []
    right, train = private_counts.right, utility.train_classifier
    monkeypatch.setattr(private_counts, "right", lambda model, images: seen.append(images) or right(model, images))
    monkeypatch.setattr(utility, "train_classifier", lambda *inputs: trained.append(inputs[1]) or train(*inputs))
    evaluate(options(counted))
    expected = read_part(counted / "dataset.safetensors", "validation")
    assert all(np.array_equal(found.pixels[:], expected[:]) and len(found) == 10 for found in seen) and len(seen) == 6
    assert [len(found) for found in trained] == [60, 60]


def test_an_interrupted_evaluation_releases_what_a_whole_one_does(counted, monkeypatch):
    evaluate(options(counted))
    names = ("validation.csv", "utility.json")
    whole = [(counted / name).read_bytes() for name in names]
    measured = read_record(counted / "private_validation.json", Measured)
    (counted / "validation.csv").unlink()
    train = utility.train_classifier

    def ended(model, *others):
        if type(model.layer1[0]).__name__ == "Bottleneck":
            raise Interrupted
        train(model, *others)

    monkeypatch.setattr(utility, "train_classifier", ended)
    with pytest.raises(Interrupted):
        evaluate(options(counted))
    assert not (counted / "validation.csv").exists()  # nothing was released
    monkeypatch.setattr(utility, "train_classifier", train)
    evaluate(options(counted))
    assert [(counted / name).read_bytes() for name in names] == whole
    again = read_record(counted / "private_validation.json", Measured)
    assert replace(again, salt="", seconds=0) == replace(measured, salt="", seconds=0)


def test_counts_with_real_noise_are_made_once(counted, plan, new_owner):
    """Deleted, they are put back with all that was written beside them; under another protocol they are refused."""
    real = replace(RELEASE, noise="system")
    change(counted / "ledger.json", Ledger, noise="system", reserved=(real,), not_for_release=None)
    new_owner(sha256(counted / "dataset.safetensors"), plan.run.dataset)
    evaluate(options(counted))
    names = ("utility.json", "validation.csv", "validation_spend.json", "private_validation.json")
    first = {name: sha256(counted / name) for name in names}
    for name in names:
        (counted / name).unlink()
    evaluate(options(counted))
    assert {name: sha256(counted / name) for name in names} == first and audit(counted).counts == first["validation.csv"]
    other_recipe(batch=7)(counted)
    with pytest.raises(UserError, match="--protocol-digest = .* was released with"):
        evaluate(options(counted))


def test_the_ceiling_counts_no_private_image(counted):
    """It is chosen by a share of the real training images, and its record says so."""
    values = {name: getattr(options(counted), name) for name in ("archive", "dataset", "protocol", "registry")}
    files = {"features": counted / "features.safetensors", "ceiling": counted / "ceiling.json"}
    reference_features(ReferenceFeatures(**values, **files))
    ceiling = read_record(counted / "ceiling.json", Utility)
    assert (ceiling.selection, ceiling.counts) == ("synthetic", None)


@pytest.mark.parametrize("name", ["ledger", "counts", "spend", "private"])
def test_without_a_ledger_and_files_nothing_is_counted(counted, name):
    with pytest.raises(UserError, match=f"--{name} = None: counts-v1 releases counts"):
        evaluate(options(counted, **{name: None}))
    assert not (counted / "utility.json").exists()


def test_what_is_lacking_is_told_before_hours_of_fidelity(counted):
    both = {"what": ("fidelity", "utility"), "fidelity": counted / "fidelity.json", "ledger": None}
    with pytest.raises(UserError, match="--ledger = None: counts-v1 releases counts"):
        evaluate(options(counted, **both))
    assert not (counted / "fidelity.json").exists()


def test_a_protocol_that_trains_nothing_has_nothing_to_count(counted):
    other_recipe(classifiers=["probe"])(counted)
    with pytest.raises(UserError, match="chooses among a training's states, and probe has none"):
        evaluate(options(counted))


def other_ledger(**changes):
    return lambda folder: change(folder / "ledger.json", Ledger, **changes)


def other_recipe(**changes):
    def write(folder):
        registry = yaml.safe_load((folder / "protocols.yaml").read_text())
        registry["counts-v1"]["recipes"] = [RECIPE | changes]
        (folder / "protocols.yaml").write_text(yaml.safe_dump(registry))

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_ledger(reserved=()), "reserved 0 counts, counts-v1 makes 6"),
        (other_ledger(reserved=(replace(RELEASE, steps=5),)), "reserved 5 counts, counts-v1 makes 6"),
        (other_ledger(dataset_id="f" * 64), "is another dataset than that of"),
        (other_recipe(checkpoints=4), "reserved 6 counts, counts-v1 makes 8"),
        (other_recipe(repeats=2), "reserved 6 counts, counts-v1 makes 12"),
        (other_recipe(steps=2), "checkpoints = 3: a training has 2 steps"),
    ],
)
def test_counts_that_were_not_planned_are_not_made(counted, damage, message, monkeypatch):
    damage(counted)
    monkeypatch.setattr(private_counts, "right", None)  # calling it would fail
    with pytest.raises(UserError, match=message):
        evaluate(options(counted))
    assert not (counted / "utility.json").exists() and not (counted / "validation.csv").exists()


def spent(**changes):
    return lambda folder: change(folder / "validation_spend.json", Spend, **changes)


def released(**changes):
    def write(folder):
        spend = read_record(folder / "validation_spend.json", Spend)
        spent(release=replace(spend.release, **changes))(folder)

    return write


def seen(**changes):
    def write(folder):
        change(folder / "private_validation.json", Measured, **changes)
        spent(private=sha256(folder / "private_validation.json"))(folder)

    return write


DIGEST = hashlib.sha256(b"x").hexdigest()[:12]
TAMPERINGS = {
    "less noise": (released(noise_multiplier=1.0), "noise_multiplier = 1.0: the plan has 5.0"),
    "more counts": (released(steps=7), "steps = 7: the plan has 6"),
    "another sensitivity": (released(sensitivity=0.5), "sensitivity"),
    "other noise": (released(noise="system"), "noise = 'system': the plan has seed"),
    "another run": (spent(subject="x"), "subject = 'x'"),
    "another unit": (spent(unit="user"), "unit = 'user'"),
    "other images": (spent(dataset_id="f" * 64), "dataset_id"),
    "another number of images": (spent(population=11), "population = 11: the run has 10"),
    "after another ledger": (spent(made_from={"ledger": "0" * 64}), "ledger = "),
    "another dataset's record": (lambda folder: change(folder / "dataset.json", DatasetRecord, id="f" * 64), "--dataset"),
    "other counts": (
        lambda folder: (folder / "validation.csv").write_text("x"),
        f"validation.csv = '{DIGEST}': is not the file that was recorded",
    ),
    "other measures": (
        lambda folder: (folder / "private_validation.json").write_text("x"),
        f"private_validation.json = '{DIGEST}': is not the file that was recorded",
    ),
    "no noise": (seen(squares=(0.0,) * 6, parts=(0.0,)), "the noise was 0 times"),
    "noise on some counts": (seen(squares=(1.0,) * 5), "squares = 5: must be one for each of 6 steps"),
    "noise on more than a count": (seen(sizes=(1, 1), parts=(6.0, 6.0)), "sizes = 2: must be 1"),
    "images that were not drawn": (seen(strangers=1), "strangers = 1"),
    "an image that adds two": (seen(largest_contribution=2.0), "exceeds the sensitivity 1.0"),
    "a contribution that was not measured": (seen(largest_contribution=0.0), "was not measured"),
    "a batch": (seen(batches=(9, *[10] * 5)), "batches"),
    "nothing was reserved": (other_ledger(reserved=()), "reserved no validation counts"),
    "a target that is exceeded": (other_ledger(target_epsilon=1.0), "epsilon = .*: exceeds the target 1.0"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_differs_is_refused_by_name(counted, name, made_counts):
    tamper, message = TAMPERINGS[name]
    for file, content in made_counts(counted).items():
        (counted / file).write_bytes(content)
    tamper(counted)
    if name in ("a target that is exceeded",):
        spent(made_from={"ledger": sha256(counted / "ledger.json")})(counted)
    with pytest.raises(UserError, match=message):
        audit(counted)
    assert not (counted / "validation_ledger.json").exists()


def test_what_was_released_before_counts_and_without_a_target_nothing_is_certified(counted, made_counts, plan):
    for file, content in made_counts(counted).items():
        (counted / file).write_bytes(content)
    before = replace(RELEASE, steps=1, noise_multiplier=3.0)
    for target, expected in ((10.0, epsilon("pld", [plan.releases[0], RELEASE, before], 3.5e-5)), (None, None)):
        change(counted / "ledger.json", Ledger, prior=(before,), target_epsilon=target)
        spent(made_from={"ledger": sha256(counted / "ledger.json")})(counted)
        found = audit(counted)
        assert found.spent_epsilon.get("pld") == (expected and rounded_up(expected, DIGITS)) and found.target_epsilon == target


@pytest.fixture(scope="module")
def made_counts():
    """Counts that are made once; what they are of is the same in every test."""
    kept = {}

    def make(folder):
        if not kept:
            evaluate(options(folder))
            names = ("validation.csv", "validation_spend.json", "private_validation.json")
            kept.update({name: (folder / name).read_bytes() for name in names})
        return kept

    return make
