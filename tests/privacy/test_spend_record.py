"""Where the record of spends lies, and what it reads for ever."""

import json

import pytest

from dpsapf.privacy.spend_record import Spent, folder, opened
from dpsapf.support.errors import UserError, UserErrors


@pytest.mark.parametrize("given", ["", "relative/data"])
def test_without_the_variable_it_lies_among_the_users_data(monkeypatch, tmp_path, given):
    monkeypatch.delenv("DPSAPF_SPENDS")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", given)
    assert folder() == tmp_path / ".local/share/dpsapf/spends"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert folder() == tmp_path / "data/dpsapf/spends"


def test_a_folder_that_cannot_be_made_is_told_with_the_remedy(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for place, told in ((tmp_path / "file" / "spends", "cannot be made"), ("some/where", "must be an absolute path")):
        monkeypatch.setenv("DPSAPF_SPENDS", str(place))
        with pytest.raises(UserError, match=f"DPSAPF_SPENDS = .*{told}"), opened():
            pass


# a line as it was first written; whatever comes later has to read it
OLD = {
    "previous": None,
    "when": "2025-12-01T00:00:00+00:00",
    "told": {
        "kind": "spent",
        "subject": "mine--public-mini--dp-lora--eps10--seed0",
        "dataset_id": "a" * 64,
        "unit": "image",
        "release": {
            "name": "dp-sgd",
            "mechanism": "gaussian",
            "noise_multiplier": 0.7,
            "sensitivity": 1.0,
            "sampling_rate": 0.1,
            "steps": 4,
            "noise": "system",
            "epsilon": None,
            "delta": None,
        },
        "key": "w" * 64,
        "refused": False,
        "reserved_as": None,
        "record": {"whatever": "the stage knew then"},
    },
}


def test_lines_of_the_first_version_are_read_for_ever(spends_folder):
    spends_folder.mkdir(parents=True)
    (spends_folder / "spends.jsonl").write_text(json.dumps(OLD) + "\n")
    with opened() as book:
        assert [spent.key for spent in book.of(Spent)] == ["w" * 64]


@pytest.mark.parametrize(
    "changes", [{"reserved_as": "reserved by a run"}, {"release": OLD["told"]["release"] | {"name": "validation"}}]
)
def test_a_line_that_this_version_does_not_understand_stops_everything(spends_folder, changes):
    """What it says was spent would not be counted."""
    spends_folder.mkdir(parents=True)
    (spends_folder / "spends.jsonl").write_text(json.dumps(OLD | {"told": OLD["told"] | changes}) + "\n")
    with pytest.raises(UserErrors, match=rf"spends.jsonl: line 1: told.*{next(iter(changes))}"), opened():
        pass
