import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dpsapf.aggregation.check import check
from dpsapf.aggregation.merge import merge
from dpsapf.cli.main import main
from dpsapf.experiment.records import Merged
from dpsapf.experiment.stages import Check, Merge
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.records import read_record
from paper_figures.draw import draw_all
from tests.sealed_results import runs_of, sealed_results, theirs

TABLES = ("runs.csv", "summary.csv", "selections.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder without a flaw; tests must not change it."""
    root = sealed_results(tmp_path_factory.mktemp("whole") / "whole", external=[theirs(), theirs(seed=1)])
    (root / "tables" / "saliency_agreement--mnist5k--public-mini.csv").write_text("a,b\n1,2\n")
    return root


def part(whole, folder, keep):
    """Copy of a results folder with those of its runs whose id ``keep`` accepts, and without tables."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "tables")
    for run in list((folder / "runs").iterdir()):
        if not keep(run.name):
            shutil.rmtree(run)
    return folder


@pytest.fixture
def halves(whole, tmp_path):
    one = part(whole, tmp_path / "one", lambda name: "seed0" in name)
    other = part(whole, tmp_path / "other", lambda name: "seed1" in name)
    return one, other


def joined(*parts):
    out = parts[0].parent / "joined"
    merge(Merge(results=parts, out=out))
    return out


def lines(path):
    header, *rows = path.read_bytes().splitlines()
    return header, sorted(rows)


def refused(*parts):
    """The lines of a refusal, which leaves no file that was not there."""
    parent = parts[0].parent
    before = {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    with pytest.raises(UserErrors) as raised:
        joined(*parts)
    assert before == {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    assert not (parent / "joined").exists()
    return "\n".join(str(error) for error in raised.value.errors)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


@pytest.mark.parametrize(
    "keep", [lambda name: "seed0" in name, lambda name: "dp-" in name, lambda name: name < "mnist5k--public-mini--external"]
)
def test_two_halves_are_the_whole(whole, tmp_path, keep):
    one = part(whole, tmp_path / "one", keep)
    other = part(whole, tmp_path / "other", lambda name: not keep(name))
    out = joined(one, other)
    for table in TABLES:
        assert lines(out / "tables" / table) == lines(whole / "tables" / table), table
    for run in (whole / "runs").iterdir():
        assert (out / "runs" / run.name / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()


def test_half_and_half_in_the_other_order_are_the_whole(whole, halves):
    out = joined(*reversed(halves))
    for table in TABLES:
        assert lines(out / "tables" / table) == lines(whole / "tables" / table), table


def test_what_is_joined_has_no_images_weights_or_anything_private(halves):
    names = {path.name for path in joined(*halves).rglob("*") if path.is_file()}
    assert not {name for name in names if name.startswith("private") or Path(name).suffix in (".npz", ".safetensors")}
    assert {"plan.json", "ledger.json", "external.json", "selection.csv", "spend.json", "timing.json", "metrics.json"} <= names


def test_what_is_joined_passes_the_check_joins_again_and_is_drawn(whole, halves, tmp_path):
    out = joined(*halves)
    check(Check(results=out))
    assert {path.name for path in tmp_path.iterdir()} == {"one", "other", "joined"}
    third = sealed_results(tmp_path / "third", runs_of(methods=("dp-ldm",)))
    merge(Merge(results=(out, third), out=tmp_path / "twice"))
    check(Check(results=tmp_path / "twice"))
    assert len(pd.read_csv(tmp_path / "twice/tables/runs.csv")) == len(pd.read_csv(whole / "tables/runs.csv")) + 2
    assert "main_table" in draw_all(out, tmp_path / "figures")
    table = (tmp_path / "figures" / "main_table.md").read_text()
    assert "Their method (2025), ε claimed, not audited" in table and "claimed, not audited by this suite" in table


def test_a_change_after_joining_is_found(halves):
    out = joined(*halves)
    path = next((out / "runs").glob("*dp-lora*seed0")) / "metrics.json"
    path.write_text(path.read_text().replace('"selected_matrices": ', '"selected_matrices": 1', 1))
    with pytest.raises(UserErrors, match="metrics.json: SHA-256 = .*merged.json names"):
        check(Check(results=out))


def test_merged_json_says_whose_results_they_are(halves):
    out = joined(*halves)
    merged = read_record(out / "merged.json", Merged)
    assert merged.parts == ("one", "other") and merged.protocol == "test-v1" and merged.differences == ()
    assert set(merged.runs) == {path.name for path in (out / "runs").iterdir()}


def test_a_run_that_comes_twice_is_refused_unless_it_is_the_same_bytes(whole, halves, tmp_path):
    again = part(whole, tmp_path / "again", lambda name: "dp-lora" in name)
    assert len(pd.read_csv(joined(*halves, again) / "tables/runs.csv")) == len(pd.read_csv(whole / "tables/runs.csv"))
    shutil.rmtree(tmp_path / "joined")
    for path in again.glob("runs/*seed1/utility.json"):
        edit(path, provenance={"git_commit": "0f0f"})
    (line,) = refused(*halves, again).splitlines()
    assert "dp-lora--eps10--seed1 = 'twice'" in line and "utility.json" in line


def test_other_protocols_are_refused(halves, tmp_path):
    third = sealed_results(tmp_path / "third", runs_of(methods=("dp-ldm",)), protocol="other-v1")
    text = refused(*halves, third)
    assert "metrics.json: protocol = 'other-v1'" in text and "has test-v1: never mix protocols" in text


def test_another_split_of_the_dataset_is_refused(halves):
    for path in halves[1].glob("runs/*/utility.json"):
        edit(path, test_images=999)
    assert "prepare the dataset mnist5k in one way" in refused(*halves)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("metrics.json", lambda path: edit(path, fid=0.1), "fid = 0.1: fidelity.json has"),
        ("ledger.json", lambda path: edit(path, delta=0.1), "ledger.json: SHA-256 = .*timing.json"),
        ("weights.safetensors", lambda path: path.write_bytes(b"x"), "weights.safetensors: SHA-256 = .*ledger.json"),
        ("selection.csv", lambda path: path.write_text("x"), "selection.csv: SHA-256"),
        ("ledger.json", Path.unlink, "ledger.json = 'missing'"),
        ("plan.json", lambda path: path.write_text("{"), "plan.json = 'not JSON'"),
    ],
)
def test_a_changed_record_is_refused(halves, name, damage, message):
    damage(next(halves[1].glob("runs/*dp-lora*")) / name)
    assert re.search(message, refused(*halves))


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("theirs", "Another method", "'Another method': .* has 'Their method \\(2025\\)' for 'theirs'"),
        ("others", "Their method (2025)", "'others': .* has 'theirs' for 'Their method \\(2025\\)'"),
    ],
)
def test_methods_of_other_groups_that_tables_could_not_tell_apart_are_refused(halves, tmp_path, name, label, message):
    runs = [theirs(seed=2, name=name)]
    third = sealed_results(tmp_path / "third", [], runs)
    for record in ("external.json", "metrics.json"):
        edit(third / "runs" / runs[0].id / record, label=label)
    assert re.search(message, refused(*halves, third))


def test_other_tables_of_one_name_are_refused(whole, halves):
    for number, half in enumerate(halves):
        (half / "tables").mkdir()
        (half / "tables" / "saliency_agreement--mnist5k--public-mini.csv").write_text(f"a,b\n1,{number}\n")
    assert "saliency_agreement--mnist5k--public-mini.csv = 'twice'" in refused(*halves)


def test_tables_of_diagnostics_come_along(whole, halves):
    name = "tables/saliency_agreement--mnist5k--public-mini.csv"
    (halves[1] / "tables").mkdir()
    shutil.copy(whole / name, halves[1] / name)
    assert (joined(*halves) / name).read_bytes() == (whole / name).read_bytes()


def test_another_machine_with_another_secret_and_commit_is_told_not_refused(halves, tmp_path, caplog):
    other = sealed_results(tmp_path / "machine", runs_of(methods=("dp-ldm",)))
    for path in other.glob("runs/*/utility.json"):
        edit(path, provenance={"versions": {"dpsapf": "0.1.0"}, "git_commit": "fade"})
    out = joined(*halves, other)
    differences = read_record(out / "merged.json", Merged).differences
    assert any(line == "commits abc, fade" for line in differences), differences
    assert "differs: commits abc, fade" in caplog.text


def test_an_existing_folder_one_folder_and_no_results_are_refused(halves, tmp_path):
    with pytest.raises(UserError, match="give two folders or more"):
        merge(Merge(results=halves[:1], out=tmp_path / "joined"))
    with pytest.raises(UserError, match="exists: give a folder that does not"):
        merge(Merge(results=halves, out=halves[0]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no runs/"):
        merge(Merge(results=(halves[0], tmp_path / "empty"), out=tmp_path / "joined"))
    assert not (tmp_path / "joined").exists()


def test_an_interruption_leaves_no_folder(halves, tmp_path, monkeypatch):
    def broken(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dpsapf.aggregation.merge.aggregate", broken)
    with pytest.raises(KeyboardInterrupt):
        joined(*halves)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "other"}


def test_the_command(halves, tmp_path):
    words = ["merge", *map(str, halves), "--out", str(tmp_path / "joined")]
    assert main(words) == 0 and (tmp_path / "joined" / "tables" / "runs.csv").exists()
    assert main(words) == 2


def test_seeds_of_a_setting_stand_together(whole, halves):
    for parts in (halves, halves[::-1]):
        ids = pd.read_csv(joined(*parts) / "tables/runs.csv")["run_id"].tolist()
        assert [name[-1] for name in ids] == ["0", "1"] * (len(ids) // 2)
        assert all(one[:-1] == other[:-1] for one, other in zip(ids[::2], ids[1::2], strict=True))
        shutil.rmtree(halves[0].parent / "joined")
