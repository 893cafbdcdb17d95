"""What was released with real noise is kept, put back, and never made again; killed anywhere, it is released once or not yet."""

import os
import shutil
from pathlib import Path

import pytest

from dpsapf.experiment.fields import source, target
from dpsapf.experiment.records import Spend
from dpsapf.experiment.stages import SpendAgain
from dpsapf.privacy import kept, spends
from dpsapf.privacy.kept import Once
from dpsapf.privacy.spend_again import spend_again
from dpsapf.support.checked import Checked, replace
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.killed import KILLED, touched

DATASET = "d" * 64
SUBJECT = "mnist5k--tiny--dp-lora--eps10--seed0"


class Options(Checked):
    """Of a stage that releases what it draws."""

    plan: Path = source("plan")
    rate: float = 0.1
    micro_batch: int = 4
    weights: Path = target("weights")
    spend: Path = target("spend")
    private: Path = target("private")
    extra: Path | None = target("more", None)


class Stage:
    """It goes on from a checkpoint, draws, and releases, like the three that do."""

    def __init__(self, folder, release):
        self.folder, self.release, self.subject, self.dataset = folder, release, SUBJECT, DATASET
        names = {"plan": "plan.json", "weights": "weights.safetensors", "spend": "spend.json", "private": "private.json"}
        self.options = Options(**{name: folder / file for name, file in names.items()})
        folder.mkdir(exist_ok=True)
        self.options.plan.write_text("as it was")

    @property
    def checkpoint(self):
        return Checkpoint.beside(self.options.weights, {})

    def __call__(self):
        once = Once(self.options, "dp-sgd", self.release.noise, self.subject, self.dataset)
        if once.put_back():
            return
        self.resumed = self.checkpoint.load() is not None
        self.checkpoint.save({"steps": 1}, {})
        with once.making() as there:
            there.weights.write_bytes(os.urandom(64))
            there.private.write_bytes(os.urandom(64))
            if there.extra:
                there.extra.write_text("more")
            write_record(there.spend, self._spend(there))
        self.checkpoint.remove()

    def _spend(self, there):
        fixed = {"unit": "image", "population": 40, "numbers": 1, "trainable_parameters": 1}
        return Spend(
            subject=self.subject,
            release=self.release,
            dataset_id=self.dataset,
            made_from={},
            digest=sha256(there.weights),
            private=sha256(there.private),
            provenance={},
            **fixed,
        )

    @property
    def outputs(self):
        paths = (self.options.weights, self.options.spend, self.options.private)
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def delete(self):
        for path in (self.options.weights, self.options.spend, self.options.private):
            path.unlink(missing_ok=True)


@pytest.fixture
def stage(tmp_path, releases, new_owner):
    new_owner()
    return Stage(tmp_path / "run", replace(releases[1], noise="system"))


def on_record(subject=SUBJECT):
    return [spent.key for spent in spends.released(subject, DATASET)]


def test_a_second_start_puts_everything_back_to_the_byte(stage):
    stage()
    first = stage.outputs
    assert len(first) == 3 and on_record() == [sha256(stage.options.weights)]
    for damage in (stage.delete, lambda: stage.options.weights.write_bytes(b"cut"), lambda: None):
        damage()
        stage()
        assert stage.outputs == first
    assert len(on_record()) == 1


def test_noise_from_a_seed_is_written_as_it_always_was(stage):
    stage.release = replace(stage.release, noise="seed")
    stage()
    first = stage.outputs
    stage()
    assert stage.outputs != first and on_record() == [] and not (stage.folder / kept.FOLDER).exists()


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_killed_anywhere_it_is_released_once_or_not_yet(stage, tmp_path, new_owner, every):
    """Before a touch of a file; then it is started again, and at last everything is there once."""

    def mine(path):
        return path.startswith((str(tmp_path), os.environ["DPSAPF_SPENDS"]))

    _, events = touched(stage, mine, tmp_path / "log")
    assert len(events) > 40
    for end in range(0, len(events), every):
        shutil.rmtree(stage.folder)
        stage = Stage(stage.folder, stage.release)
        new_owner()
        code, _ = touched(stage, mine, tmp_path / "log", end)
        assert code == KILLED
        (first,) = on_record() or [None]
        assert first or not stage.outputs, "what is out is on record"
        stage()
        (only,) = on_record()
        assert first in (None, only) and sha256(stage.options.weights) == only and len(stage.outputs) == 3
        (there,) = (stage.folder / kept.FOLDER).iterdir()
        assert sha256(there / "weights.safetensors") == only and not stage.checkpoint.path.exists()


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_nothing_goes_on_from_the_checkpoint_of_what_was_released(stage, tmp_path, new_owner, every):
    """Killed anywhere, then set free: the next release has a batch of its own, as accounting supposes."""

    def there(path):
        return path.startswith(str(tmp_path))

    _, events = touched(stage, there, tmp_path / "log")
    for end in range(0, len(events), every):
        shutil.rmtree(stage.folder)
        stage = Stage(stage.folder, stage.release)
        new_owner()
        touched(stage, there, tmp_path / "log", end)
        if on_record():
            spend_again(SpendAgain(run=SUBJECT))
            stage()
            assert not stage.resumed and len(list((stage.folder / kept.FOLDER).iterdir())) == 2
    assert not stage.resumed, "the last event comes after the spend"


def test_what_was_spent_and_is_not_there_is_refused_with_both_remedies(stage):
    stage()
    shutil.rmtree(stage.folder)
    stage = Stage(stage.folder, stage.release)
    with pytest.raises(UserError, match=rf"{SUBJECT} = .*was released before.*from a copy.*spend-again"):
        stage()
    assert stage.outputs == {} and len(on_record()) == 1


def test_a_copied_folder_is_put_back_where_nobody_knows_of_it(stage, tmp_path, new_owner):
    """Another machine, and another record of spends: the spend is on record there, too, before anything is put back."""
    stage()
    shutil.copytree(stage.folder, tmp_path / "elsewhere")
    new_owner("e" * 64, "other")
    copied = Stage(tmp_path / "elsewhere", stage.release)
    copied.delete()
    copied()
    assert copied.outputs == stage.outputs and on_record() == [sha256(stage.options.weights)]


def test_a_run_that_is_set_free_is_released_beside_the_first(stage):
    stage()
    first = stage.outputs
    spend_again(SpendAgain(run=SUBJECT))
    stage()
    second = stage.outputs
    assert second["weights.safetensors"] != first["weights.safetensors"]
    stage.delete()
    stage()
    assert stage.outputs == second
    numbers = {path.name.split("-")[2]: path for path in (stage.folder / kept.FOLDER).iterdir()}
    assert {number: (path / "weights.safetensors").read_bytes() for number, path in numbers.items()} == {
        "1": first["weights.safetensors"],
        "2": second["weights.safetensors"],
    }


def test_what_was_set_free_while_it_was_under_way_is_kept_too(stage, tmp_path):
    """Killed after its spend, then set free: what holds the spend stays."""
    code, events = touched(stage, lambda path: "under-way" in path, tmp_path / "log")
    shutil.rmtree(stage.folder)
    stage = Stage(stage.folder, stage.release)
    spend_again(SpendAgain(run=SUBJECT))
    last = max(place for place, (event, _) in enumerate(events) if event == "os.rename")
    code, _ = touched(stage, lambda path: "under-way" in path, tmp_path / "log", last)
    (spent,) = on_record()
    spend_again(SpendAgain(run=SUBJECT))
    stage()
    assert code == KILLED and on_record() == [sha256(stage.options.weights)] != [spent]
    held = {sha256(path / "weights.safetensors") for path in (stage.folder / kept.FOLDER).iterdir()}
    assert held == {spent, sha256(stage.options.weights)}


OTHERWISE = {
    "another setting": ({"rate": 0.2}, r"--rate = 0\.2: .* was released with 0\.1"),
    "a file more": ({"extra": "more.txt"}, "--extra = .*was not written when"),
}


@pytest.mark.parametrize(("changes", "message"), OTHERWISE.values(), ids=list(OTHERWISE))
def test_what_is_asked_for_otherwise_is_refused_and_changes_nothing(stage, changes, message):
    stage()
    first = stage.outputs
    paths = {name: stage.folder / value for name, value in changes.items() if name == "extra"}
    stage.options = replace(stage.options, **(changes | paths))
    with pytest.raises(UserError, match=message):
        stage()
    assert stage.outputs == first


def test_what_only_rounds_may_be_asked_for_otherwise(stage):
    stage()
    stage.options = replace(stage.options, micro_batch=8)
    stage()


def test_a_setting_that_an_update_adds_or_takes_away_is_no_other_setting(stage):
    stage()
    (there,) = (stage.folder / kept.FOLDER).iterdir()
    record = read_record(there / "kept.json", kept.Kept)
    settings = {"gone": 3} | {name: value for name, value in record.settings.items() if name != "rate"}
    (there / "kept.json").chmod(0o600)
    write_record(there / "kept.json", replace(record, settings=settings))
    stage()
    stage.options = replace(stage.options, rate=0.3)
    with pytest.raises(UserError, match=r"--rate = 0\.3: .* was released with 0\.1"):
        stage()


def test_another_dataset_under_the_same_name_is_refused(stage, new_owner):
    stage()
    first = stage.outputs
    stage.dataset = "e" * 64
    with pytest.raises(UserError, match="dataset id = 'eeeeeeeeeeee': .* was released of dddddddddddd: put that dataset back"):
        stage()
    assert stage.outputs == first


@pytest.mark.parametrize("file", ["weights.safetensors", "spend.json", "private.json", "plan.json"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), Path.unlink], ids=["changed", "missing"])
def test_what_was_kept_and_is_no_more_what_it_was_is_named(stage, file, damage):
    stage()
    (there,) = (stage.folder / kept.FOLDER).iterdir()
    (there / file).chmod(0o600)
    damage(there / file)
    stage.delete()
    with pytest.raises((UserError, FileNotFoundError), match=file):
        stage()
    assert stage.outputs == {} and len(on_record()) == 1


def test_two_runs_in_one_folder_do_not_meet(stage):
    stage()
    first = stage.outputs
    stage.subject = SUBJECT.replace("seed0", "seed1")
    stage()
    assert stage.outputs != first
    stage.subject = SUBJECT
    stage()
    assert stage.outputs == first


def test_of_several_processes_one_writes_and_the_others_know(stage, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    once = Once(stage.options, "dp-sgd", "system", SUBJECT, DATASET)
    assert not once.put_back()
    monkeypatch.setenv("RANK", "0")
    stage()
    stage.delete()
    monkeypatch.setenv("RANK", "1")
    assert once.put_back() and stage.outputs == {}


def test_a_link_would_not_save_what_an_output_loses(stage):
    """Outputs are copies: what is cut off in place is put back whole."""
    stage()
    first = stage.outputs
    os.truncate(stage.options.weights, 3)
    stage()
    assert stage.outputs == first
