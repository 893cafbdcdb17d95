import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from dpsapf.datasets import camelyon17, celeba, cifar10, octmnist
from dpsapf.datasets.loaders import loader
from dpsapf.datasets.prepare import prepare_dataset
from dpsapf.datasets.prepared import read_part
from dpsapf.datasets.published import check_counts, check_labels, check_md5, drawn, in_use, published
from dpsapf.experiment.records import DatasetRecord
from dpsapf.experiment.registries import DatasetEntry, load_registry
from dpsapf.experiment.stages import PrepareDataset
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json, read_record
from tests.published_files import camelyon_folder, celeba_folder, cifar_files, md5, octmnist_arrays, tarred

ENTRIES = load_registry(Path(__file__).parents[2] / "config" / "datasets.yaml", DatasetEntry)


def cifar10_source(folder, patch):
    folder.mkdir()
    files = cifar_files()
    patch.setattr(cifar10, "MD5", {name: md5(data) for name, data in files.items()})
    patch.setattr(cifar10, "COUNTS", {"train": 30, "test": 6})
    return tarred(folder / "cifar-10-python.tar.gz", files)


def octmnist_source(folder, patch):
    folder.mkdir()
    np.savez_compressed(folder / "octmnist_128.npz", **octmnist_arrays())
    patch.setattr(octmnist, "MD5", md5((folder / "octmnist_128.npz").read_bytes()))
    patch.setattr(octmnist, "COUNTS", {"train": 9, "validation": 5, "test": 4})
    return folder / "octmnist_128.npz"


def celeba_source(folder, patch):
    patch.setattr(celeba, "MD5", celeba_folder(folder))
    patch.setattr(celeba, "COUNTS", {"train": 4, "validation": 2, "test": 2})
    return folder


def camelyon17_source(folder, patch):
    patch.setattr(camelyon17, "COUNTS", {"train": 4, "in-distribution validation": 1, "validation": 2, "test": 2})
    return camelyon_folder(folder)


SOURCES = {"cifar10": cifar10_source, "octmnist": octmnist_source, "celeba": celeba_source, "camelyon17": camelyon17_source}
SIZES = {"cifar10": None, "octmnist": (9, 5, 4), "celeba": (4, 2, 2), "camelyon17": (4, 2, 2)}
DRAWN = {"cifar10": (24, 6, 6), "octmnist": (6, 3, 4), "celeba": (3, 1, 2), "camelyon17": (3, 1, 2)}


def prepare(folder, item):
    (folder / "datasets.yaml").write_text(yaml.safe_dump({"mine": as_json(item)}))
    files = {key: folder / name for key, name in (("archive", "d.safetensors"), ("record", "d.json"), ("preview", "d.png"))}
    prepare_dataset(PrepareDataset(name="mine", registry=folder / "datasets.yaml", threads=2, **files))
    return read_record(files["record"], DatasetRecord), files["archive"]


@pytest.mark.parametrize("name", SOURCES)
def test_the_registry_s_entry_is_prepared(tmp_path, monkeypatch, name):
    entry = replace(ENTRIES[name], source=str(SOURCES[name](tmp_path / "source", monkeypatch)))
    record, archive = prepare(tmp_path, replace(entry, validation=5) if name == "cifar10" else entry)
    sizes = record.train, record.validation, record.test
    assert sizes == SIZES[name] if SIZES[name] else (sum(sizes) == 36 and record.test == 6)
    source = loader(entry).load(entry)
    assert np.array_equal(load_file(archive)["images"], np.concatenate(list(source.decoded(1))))
    assert load_file(archive)["labels"].tolist() == source.labels.tolist()


@pytest.mark.parametrize("name", SOURCES)
def test_the_reference_s_entry_is_prepared(tmp_path, monkeypatch, name):
    entry = ENTRIES[f"{name}-reference-code"]
    source = SOURCES[name](tmp_path / "source", monkeypatch)
    record, _ = prepare(tmp_path, replace(entry, source=str(source), train=DRAWN[name][0]))
    assert (record.train, record.validation, record.test) == DRAWN[name]


@pytest.mark.parametrize(("users", "count"), [("patient", 3), ("slide", 4)])
def test_patients_or_slides_may_be_the_unit(tmp_path, monkeypatch, users, count):
    source = camelyon17_source(tmp_path / "source", monkeypatch)
    record, archive = prepare(tmp_path, replace(ENTRIES["camelyon17"], source=str(source), users=users))
    assert record.users == count and set(read_part(archive, "train").users) == set(range(count))
    assert load_file(archive)["users"].max() == count + 3, "four of other splits"


def told(**sizes):
    return np.repeat(list(sizes), list(sizes.values()))


@pytest.mark.parametrize(("size", "count"), [(10, 7), (1000, 891), (60_000, 55_000)])
def test_training_images_are_those_of_random_split(size, count):
    torch.manual_seed(0)
    first, rest = torch.utils.data.random_split(range(size), [count, size - count])
    found = drawn(told(train=size), count)
    assert np.array_equal(np.flatnonzero(found == "train"), sorted(first.indices))
    assert np.array_equal(np.flatnonzero(found == "validation"), sorted(rest.indices))


def test_the_draw_leaves_torch_s_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    drawn(told(train=10), 5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_training_images_are_drawn_from():
    splits = np.array(["test", "train", "validation", "train", "test", "train", "in-distribution validation"])
    found = drawn(splits, 2)
    assert found[[0, 2, 4]].tolist() == ["test", "not used", "test"] and found[6] not in ("train", "validation", "test")
    assert sorted(found[[1, 3, 5]]) == ["train", "train", "validation"]


@pytest.mark.parametrize("count", [3, 4])
def test_more_than_there_are_cannot_be_drawn(count):
    with pytest.raises(UserError, match=f"train = {count}: must be below 3"):
        drawn(told(train=3, test=9), count)


def test_all_images_of_a_split_are_used_if_nothing_is_asked_for(make_entry):
    splits = np.array(["train", "elsewhere", "test", "validation"])
    kept, found = in_use(splits, make_entry())
    assert kept.tolist() == [0, 2, 3] and found.tolist() == ["train", "test", "validation"]


def test_the_registry_s_numbers_are_the_paper_s_and_the_reference_s():
    """Of the training images that the loaders check for, in the order train, validation, test."""
    counts = {"cifar10": cifar10.COUNTS, "octmnist": octmnist.COUNTS, "celeba": celeba.COUNTS, "camelyon17": camelyon17.COUNTS}
    reference = {"cifar10": 45_000, "octmnist": 55_000, "celeba": 145_064, "camelyon17": 269_538}
    for name, official in counts.items():
        assert ENTRIES[name].loader == ENTRIES[f"{name}-reference-code"].loader == name and ENTRIES[name].train is None
        assert ENTRIES[f"{name}-reference-code"].train == reference[name] < official["train"]
        assert ENTRIES[name].test == 0 and ENTRIES[name].validation == (5_000 if name == "cifar10" else 0)


def test_a_digest_is_of_all_bytes():
    check_md5("x", io.BytesIO(b"abc" * 10**6), md5(b"abc" * 10**6))
    with pytest.raises(UserError, match=f"x = 'md5 {md5(b'abd')}': must be {md5(b'abc')}: it is truncated"):
        check_md5("x", io.BytesIO(b"abd"), md5(b"abc"))


def test_labels_in_range_pass_and_others_are_told():
    check_labels("x", np.array([0, 3]), 4)
    for wrong in (-1, 4):
        with pytest.raises(UserError, match=f"x = 'label {wrong}': labels must be 0 to 3"):
            check_labels("x", np.array([0, wrong, 3]), 4)


def test_counts_are_exact(make_entry):
    check_counts(make_entry(), told(train=3, test=2), {"train": 3, "test": 2})
    for splits, named in (
        (told(train=4, test=2), "4 train images and must have 3"),
        (told(train=3), "0 test images and must have 2"),
    ):
        with pytest.raises(UserError, match=f"source = 'nowhere': has {named}"):
            check_counts(make_entry(), splits, {"train": 3, "test": 2})


def test_a_source_is_where_the_entry_says_and_has_its_digest(make_entry, plant):
    folder = plant({"a": b"1"})
    assert published(make_entry(source=str(folder), sha256=sha256(folder)), "x") == folder
    with pytest.raises(UserError, match="sha256"):
        published(make_entry(source=str(folder), sha256="0" * 64), "x")
    with pytest.raises(UserError, match="does not exist; put x there"):
        published(make_entry(), "x")
