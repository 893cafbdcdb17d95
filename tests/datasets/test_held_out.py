from pathlib import Path

import pytest

from dpsapf.datasets.held_out import check_held_out
from dpsapf.datasets.loaders import LOADERS
from dpsapf.experiment.registries import DatasetEntry, load_registry
from dpsapf.support.errors import UserError

CONFIG = Path(__file__).parents[2] / "config"


def check(entry):
    check_held_out("mine", entry, "demo-v1")


@pytest.mark.parametrize("name", load_registry(CONFIG / "datasets.yaml", DatasetEntry))
def test_what_is_shipped_has_all_that_it_needs(name):
    check(load_registry(CONFIG / "datasets.yaml", DatasetEntry)[name])


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_that_has_no_test_images_apart_needs_a_count(make_entry, loader):
    entry = make_entry(loader=loader, procedural=LOADERS[loader].procedural, test=0)
    if "test" in LOADERS[loader].own_splits(entry):
        return check(entry)
    with pytest.raises(UserError, match=r"mine\.test = 0: protocol demo-v1 needs images that are held out"):
        check(entry)


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
