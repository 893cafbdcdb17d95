from pathlib import Path

import pytest

from dpsapf.datasets.held_out import check_held_out
from dpsapf.datasets.loaders import LOADERS
from dpsapf.experiment.registries import DatasetEntry, ProtocolEntry, load_registry
from dpsapf.support.errors import UserError

CONFIG = Path(__file__).parents[2] / "config"
PROTOCOLS = load_registry(CONFIG / "protocols.yaml", ProtocolEntry)


def check(entry, protocol="demo-v1", **changes):
    check_held_out("mine", entry, protocol, PROTOCOLS[protocol].model_copy(update=changes))


def counting():
    """A protocol that counts on validation images."""
    return PROTOCOLS["paper-text-v1"].recipes[0].model_copy(update={"selection": "noisy-private-validation"})


@pytest.mark.parametrize("name", load_registry(CONFIG / "datasets.yaml", DatasetEntry))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_shipped_has_all_that_it_needs(name, protocol):
    check(load_registry(CONFIG / "datasets.yaml", DatasetEntry)[name], protocol)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_that_has_no_test_images_apart_needs_a_count(make_entry, loader):
    entry = make_entry(loader=loader, procedural=LOADERS[loader].procedural, test=0)
    if "test" in LOADERS[loader].own_splits(entry):
        return check(entry)
    with pytest.raises(UserError, match=r"mine\.test = 0: protocol demo-v1 needs images that are held out"):
        check(entry)


def test_validation_images_are_needed_where_a_protocol_counts_on_them(make_entry):
    entry = make_entry(loader="cifar10", validation=0, test=0)
    check(entry)
    with pytest.raises(UserError, match=r"mine\.validation = 0"):
        check(entry, recipes=(counting(),))
    check(entry.model_copy(update={"train": 45000}), recipes=(counting(),))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("told_by", ["folders", "table"])
def test_a_folder_is_looked_at(tmp_path, plant, picture, make_entry, apart, told_by):
    places = ("train", "test") if apart else ("train",)
    files = [f"{place}/{name}/0.png" for place in places for name in ("cat", "dog")]
    keys = {"source": str(plant({file: picture() for file in files})), "test": 0}
    if told_by == "table":
        rows = [f"{file},{Path(file).parts[1]},{Path(file).parts[0]}" for file in files]
        (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
        keys["labels"] = str(tmp_path / "labels.csv")
    if apart:
        return check(make_entry(**keys))
    with pytest.raises(UserError, match=r"mine\.test = 0"):
        check(make_entry(**keys))


def test_a_source_that_is_not_there_yet_is_believed(make_entry):
    check(make_entry(test=0))
