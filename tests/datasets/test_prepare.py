import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file
from scipy.stats import chisquare

from dpsapf.cli.main import main
from dpsapf.datasets import image_files
from dpsapf.datasets.decoding import decode
from dpsapf.datasets.loaders import LOADERS
from dpsapf.datasets.prepare import check_classes, check_training_classes, numbered, prepare_dataset
from dpsapf.datasets.prepared import read_part, read_salt
from dpsapf.datasets.splits import placed, unit_hashes
from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.records import DatasetRecord
from dpsapf.experiment.registries import DatasetEntry, load_registry
from dpsapf.experiment.stages import PrepareDataset
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json, read_record
from tests.all_images import Part

REGISTRY = Path(__file__).parents[2] / "config" / "datasets.yaml"
PUBLISHED = {"cifar10": 10, "octmnist": 4, "celeba": 2, "camelyon17": 2}
SIZES = PUBLISHED | {f"{name}-reference-code": size for name, size in PUBLISHED.items()}
SIZES |= {"mnist5k": 10, "digits": 10, "oct-mini": 4, "histo-mini": 2}


def prepare(folder, name, registry=REGISTRY, threads=1):
    """The record, the splits in memory, and the options."""
    options = PrepareDataset(
        name=name,
        registry=registry,
        archive=folder / "dataset.safetensors",
        record=folder / "dataset.json",
        preview=folder / "preview.png",
        threads=threads,
    )
    prepare_dataset(options)
    parts = {split: read_part(options.archive, split) for split in SPLITS}
    return read_record(options.record, DatasetRecord), {name: Part(part[:], part.labels) for name, part in parts.items()}, options


@pytest.fixture
def register(tmp_path):
    def write(entry):
        path = tmp_path / "datasets.yaml"
        path.write_text(yaml.safe_dump({"mine": as_json(entry)}))
        return path

    return write


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("digits"), "digits")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("mnist"), "mnist5k")


def test_the_registry_is_complete():
    entries = load_registry(REGISTRY, DatasetEntry)
    assert {name: len(entry.classes) for name, entry in entries.items()} == SIZES
    for entry in entries.values():
        check_classes(entry)
        assert entry.procedural == LOADERS[entry.loader].procedural
        assert entry.procedural == ("procedural" in entry.source), "said wherever it is named"


def test_the_registry_explains_every_key():
    head = REGISTRY.read_text().split("\nmnist5k:")[0]
    for key in DatasetEntry.model_fields:
        assert f"\n# {key} " in head


@pytest.mark.parametrize(("name", "sizes"), [("digits", (1194, 209, 394)), ("mnist", (3513, 518, 969))])
def test_real_digits(request, name, sizes):
    record, parts, options = request.getfixturevalue(name)
    for split, size in zip(SPLITS, sizes, strict=True):
        images, labels = parts[split]
        assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((size, 32, 32, 3), np.uint8, (size,), np.int64)
        assert getattr(record, split) == size
        law = chisquare(np.bincount(labels))
        assert law.pvalue > 1e-4, "the pools are balanced to a percent, and so are independent draws from them"
    assert (images == images[..., :1]).all(), "grey, three times"
    assert record.train_per_class == tuple(np.bincount(parts["train"].labels))
    assert record.id == sha256(options.archive)
    assert not record.procedural


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_no_image_is_in_two_splits(request, name):
    _, parts, _ = request.getfixturevalue(name)
    images = [{image.tobytes() for image in part.images} for part in parts.values()]
    assert sum(map(len, images)) == len(set.union(*images))


def test_labels_are_right(mnist):
    """A nearest-mean classifier reads about 80 % of MNIST; wrong labels would give 10 %."""
    _, parts, _ = mnist
    flat = {split: part.images[..., 0].reshape(-1, 1024).astype(float) for split, part in parts.items()}
    means = np.stack([flat["train"][parts["train"].labels == digit].mean(0) for digit in range(10)])
    guesses = ((flat["test"][:, None] - means) ** 2).sum(-1).argmin(1)
    assert (guesses == parts["test"].labels).mean() > 0.7


def test_mnist_is_padded_not_scaled(mnist):
    images = mnist[1]["train"].images
    assert images[:, :2].max() == images[:, -2:].max() == images[:, :, :2].max() == images[:, :, -2:].max() == 0
    assert images.max() == 255


def test_a_second_run_writes_the_same_images_under_another_id(tmp_path, digits):
    """The id is a digest that nobody can compute from the images alone: 32 secret bytes are in it."""
    record, parts, first = digits
    other, again, second = prepare(tmp_path, "digits", threads=2)
    assert all(np.array_equal(*pair) for split in SPLITS for pair in zip(parts[split], again[split], strict=True))
    salts = [read_salt(options.archive) for options in (first, second)]
    assert len(salts[0]) == 32 and salts[0] != salts[1] and record.id != other.id
    assert salts[0] in first.archive.read_bytes()
    assert np.array_equal(np.asarray(Image.open(first.preview)), np.asarray(Image.open(second.preview)))


@pytest.mark.parametrize("removed", [[], ["dataset.safetensors", "dataset.json"], ["private.salt"]], ids=str)
def test_prepared_again_in_its_folder_a_dataset_keeps_its_id(tmp_path, plant, pool, make_entry, register, removed):
    """Also where the workflow removed its outputs before, and where an earlier version left the archive alone."""
    registry = register(make_entry(source=str(plant(pool)), split_seed=1))
    first, _, _ = prepare(tmp_path / "out", "mine", registry)
    for name in removed:
        (tmp_path / "out" / name).unlink()
    again, _, _ = prepare(tmp_path / "out", "mine", registry)
    assert again.id == first.id and (tmp_path / "out" / "private.salt").stat().st_mode & 0o777 == 0o600
    elsewhere, _, _ = prepare(tmp_path / "clone", "mine", registry)
    assert elsewhere.id != first.id


def test_a_damaged_salt_is_refused_and_changes_nothing(tmp_path, plant, pool, make_entry, register):
    registry = register(make_entry(source=str(plant(pool)), split_seed=1))
    first, _, options = prepare(tmp_path / "out", "mine", registry)
    (tmp_path / "out" / "private.salt").write_bytes(b"short")
    with pytest.raises(UserError, match=r"private.salt = '5 bytes': must be 32: restore it from a copy"):
        prepare(tmp_path / "out", "mine", registry)
    assert sha256(options.archive) == first.id


def test_a_folder_end_to_end(tmp_path, plant, pool, make_entry, register):
    registry = register(make_entry(source=str(plant(pool)), split_seed=1))
    record, parts, options = prepare(tmp_path / "out", "mine", registry)
    assert (record.train, record.validation, record.test) == tuple(len(part.labels) for part in parts.values())
    assert record.train + record.validation + record.test == 14
    assert record.users is None and read_part(options.archive, "train").users is None
    assert (record.name, record.loader, record.classes, record.channels) == ("mine", "image-folder", ("cat", "dog"), 3)
    assert sorted(path.name for path in options.archive.parent.iterdir()) == [
        "dataset.json",
        "dataset.safetensors",
        "preview.png",
        "private.salt",
    ]
    assert len({image.tobytes() for part in parts.values() for image in part.images}) == 14


def test_images_stand_in_the_order_of_their_source(tmp_path, plant, pool, make_entry, register, monkeypatch):
    """Batches are smaller than the source, and each image keeps its label."""
    monkeypatch.setattr(image_files, "BATCH", 4)
    item = make_entry(source=str(plant(pool)), split_seed=1)
    _, _, options = prepare(tmp_path / "out", "mine", register(item), threads=3)
    arrays = load_file(options.archive)
    expected = np.stack([decode(pool[name], name, item) for name in sorted(pool)])
    assert np.array_equal(arrays["images"], expected) and arrays["labels"].tolist() == [0] * 8 + [1] * 6
    hashes = unit_hashes([image.tobytes() for image in expected], 1)
    assert arrays["split"].tolist() == placed(np.full(14, "train"), {"test": 4, "validation": 2}, hashes).tolist()


def test_own_splits_are_kept(tmp_path, plant, picture, make_entry, register):
    sizes = {"train": 3, "validation": 2, "test": 1}
    files = {
        f"{s}/{c}/{n}.png": picture(len(s) * 100 + len(c) + 10 * n + ord(c[0]))
        for s in sizes
        for c in ("cat", "dog")
        for n in range(sizes[s])
    }
    item = make_entry(source=str(plant(files)), validation=0, test=0)
    record, parts, _ = prepare(tmp_path / "out", "mine", register(item))
    assert {name: getattr(record, name) for name in sizes} == {name: 2 * size for name, size in sizes.items()}
    for split, size in sizes.items():
        names = [f"{split}/{c}/{n}.png" for c in ("cat", "dog") for n in range(size)]
        assert np.array_equal(parts[split].images, [decode(files[name], name, item) for name in names])
        assert parts[split].labels.tolist() == [0] * size + [1] * size


def test_grey_is_stored_once_and_read_three_times(digits):
    _, parts, options = digits
    assert load_file(options.archive)["images"].shape == (1797, 32, 32, 1) and parts["train"].images.shape[-1] == 3


def test_users_are_numbered_and_not_named(tmp_path, plant, pool, make_entry, register):
    (tmp_path / "users.csv").write_text("\n".join(["file,user", *(f"{name},secret {name[-5]}" for name in pool)]))
    registry = register(make_entry(source=str(plant(pool)), split_seed=1, users=str(tmp_path / "users.csv")))
    record, _, options = prepare(tmp_path / "out", "mine", registry)
    users = read_part(options.archive, "train").users
    assert users.dtype == np.int64 and set(users) == set(range(record.users)) and len(users) == record.train
    assert b"secret" not in options.archive.read_bytes() + options.record.read_bytes()


def test_users_of_training_images_come_first():
    users = np.array(["z", "a", "b", "a", "z", "c"])
    assert numbered(users, np.array([False, True, False, False, False, True])).tolist() == [2, 0, 3, 0, 2, 1]


def test_the_splits_keep_a_user_together(tmp_path, plant, pool, make_entry, register):
    rows = [f"{name},user {place % 7}" for place, name in enumerate(sorted(pool))]
    (tmp_path / "users.csv").write_text("\n".join(["file,user", *rows]))
    item = make_entry(source=str(plant(pool)), validation=4, users=str(tmp_path / "users.csv"))
    _, _, options = prepare(tmp_path / "out", "mine", register(item))
    arrays = load_file(options.archive)
    together = {(user, split) for user, split in zip(np.arange(14) % 7, arrays["split"], strict=True)}
    assert len(together) == 7 and len(set(zip(np.arange(14) % 7, arrays["users"], strict=True))) == 7


def broken(make_entry, pool, picture, problem):
    """An entry's changes, and the folder's files, for one mistake of a user."""
    one_dog = {name: data for name, data in pool.items() if name in ("dog/0.jpg", "dog/1.jpg") or name.startswith("cat")}
    return {
        "undecodable": ({}, pool | {"cat/x.png": b"?"}, r"cat/x\.png = 'undecodable"),
        "one class": ({"classes": ("cat",), "prompts": ("a cat",)}, pool, r"classes = \['cat'\]: needs at least two"),
        "class twice": ({"classes": ("cat", "cat")}, pool, "must not name a class twice"),
        "prompts": ({"prompts": ("a cat",)}, pool, "one prompt for each of the 2 classes"),
        "no images left": ({"validation": 4, "test": 4}, one_dog, r"classes = \['dog'\]: no training image"),
        "too few images": ({"test": 400}, pool, "test = 400"),
        "mixed modes": ({}, pool | {"dog/x.png": picture(0, "L")}, r"dog/x\.png = 'mode L'"),
        "alpha": ({}, pool | {"dog/x.png": picture(0, "RGBA")}, r"dog/x\.png = 'mode RGBA'"),
        "digest": ({"sha256": "0" * 64}, pool, "sha256"),
        "other classes": (
            {"classes": ("cat", "wolf")},
            pool,
            "dog.*none of the entry's classes: its name must be one of cat, wolf",
        ),
        "too small": ({"resolution": 64}, pool, "20 x 20.*32 to"),
        "unknown loader": ({"loader": "tar"}, pool, "loader = 'tar': must be one of"),
        "channels": (
            {"loader": "sklearn-digits", "classes": tuple("0123456789"), "prompts": tuple("0123456789")},
            pool,
            "gives 1",
        ),
        "users of no folder": (
            {"loader": "sklearn-digits", "users": "users.csv"},
            pool,
            "users = .*loader sklearn-digits does not read this key",
        ),
        "too many classes": ({"loader": "sklearn-digits", "channels": 1}, pool, "loader sklearn-digits gives 10 classes"),
    }[problem]


PROBLEMS = ["undecodable", "one class", "class twice", "prompts", "no images left", "too few images", "mixed modes", "alpha"]
PROBLEMS += ["digest", "other classes", "too small", "unknown loader", "channels", "too many classes", "users of no folder"]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_mistakes_are_told_a_line_each_and_leave_nothing(tmp_path, plant, pool, picture, make_entry, register, problem):
    changes, files, named = broken(make_entry, pool, picture, problem)
    registry = register(make_entry(source=str(plant(files)), **changes))
    with pytest.raises(UserError, match=named) as caught:
        prepare(tmp_path / "out", "mine", registry)
    lines = str(caught.value).splitlines()
    assert all(" = " in line and ": " in line for line in lines) and len(lines) <= len(files) + 1
    assert not list((tmp_path / "out").glob("*"))


def test_the_command_line_reports_a_mistake(tmp_path, make_entry, register, capsys):
    out = tmp_path / "out"
    paths = [f"--{key}={out / key}.x" for key in ("archive", "record", "preview")]
    registry = register(make_entry(source=str(tmp_path / "absent")))
    assert main(["prepare-dataset", "--name=mine", f"--registry={registry}", *paths]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not list(out.glob("*"))


def test_training_classes():
    check_training_classes(np.array([0, 1]), ("a", "b"))
    with pytest.raises(UserError, match=r"\['a', 'c'\]"):
        check_training_classes(np.array([1, 1]), ("a", "b", "c"))


def test_torch_is_not_imported():
    code = "import sys, dpsapf.datasets.prepare; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
