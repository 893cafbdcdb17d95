"""How a second release of the same images could be published at the price of one: each way ends in the right total."""

import shutil

import pytest

from dpsapf.experiment.records import Ledger, Spend
from dpsapf.experiment.stages import SpendAgain
from dpsapf.privacy import spends
from dpsapf.privacy.accounting import spent_epsilon
from dpsapf.privacy.spend_again import spend_again
from dpsapf.release.records import PrivacyRecord
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record
from tests import published_run
from tests.published_run import DP_SGD, PIXELS, SALIENCY, put_on_record, spec, write_run

OTHER = spec("dp-lora")


def another_salt(monkeypatch):
    monkeypatch.setattr(published_run, "DATASET_ID", "6e" * 32)


def register_removed(root, tmp_path, **_):
    (root / "shapes.releases.jsonl").unlink()
    return write_run(root, OTHER), {}


def two_registers(root, tmp_path, **_):
    return write_run(root, OTHER), {"register": tmp_path / "other.jsonl"}


def another_working_copy(root, tmp_path, **_):
    copy = tmp_path / "copy" / "shapes"
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "runs")
    (copy / "shapes.releases.jsonl").unlink()
    return write_run(copy, OTHER), {}


def another_clone_with_another_salt(root, tmp_path, monkeypatch):
    another_salt(monkeypatch)
    return write_run(tmp_path / "clone" / "shapes", OTHER), {}


def deleted_results(root, tmp_path, **_):
    shutil.rmtree(root)
    return write_run(root, OTHER), {}


def deleted_run(root, tmp_path, **_):
    shutil.rmtree(root / "runs" / spec().id)
    shutil.rmtree(root / "cache" / "scores")
    return write_run(root, OTHER), {"register": tmp_path / "other.jsonl"}


ATTACKS = (register_removed, two_registers, another_working_copy, another_clone_with_another_salt, deleted_results, deleted_run)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_second_release_counts_the_first(root, folder, publish, tmp_path, monkeypatch, attack):
    put_on_record(root)
    publish(folder)
    second, options = attack(root, tmp_path, monkeypatch=monkeypatch)
    put_on_record(second.parents[1])
    total = told(publish(second, "second", **options))
    assert total.epsilon == spent_epsilon([SALIENCY, DP_SGD, DP_SGD], 3.5e-5) and len(total.releases) == 3


def told(out):
    return read_record(out / "privacy.json", PrivacyRecord).together


def test_what_was_made_and_not_published_counts_and_the_statement_says_so(root, folder, publish):
    second = write_run(root, OTHER)
    put_on_record(root)
    out = publish(second)
    text = (out / "STATEMENT.md").read_text()
    assert "releases of other runs on the same images that were made and not published: 2." in text
    assert len(told(out).releases) == 3


def test_scores_that_were_set_aside_and_drawn_again_count_twice(root, folder, publish):
    put_on_record(root)
    shutil.rmtree(root / "cache" / "scores")
    spend_again(SpendAgain(run=spec().scores_id))
    spend_again(SpendAgain(run=spec().id))
    again = write_run(root)
    put_on_record(root)
    assert told(publish(again)).epsilon == spent_epsilon([SALIENCY, SALIENCY, DP_SGD, DP_SGD], 3.5e-5)


def test_the_same_images_under_another_name_count(root, folder, publish):
    """What was spent under that name is on record by its stage; its results folder is not here."""
    put_on_record(root)
    dataset = published_run.read_record(root / "cache/datasets/shapes/dataset.json", published_run.DatasetRecord)
    spends.know(replace(dataset, id="7f" * 32, name="pictures"), lambda: [PIXELS[:1]])
    spend = read_record(folder / "spend.json", Spend)
    spends.record(replace(spend, subject="pictures--run", dataset_id="7f" * 32, digest="9" * 64))
    assert told(publish(folder)).epsilon == spent_epsilon([SALIENCY, DP_SGD, DP_SGD], 3.5e-5)


def test_a_published_run_is_not_counted_twice(root, folder, publish):
    first = told(publish(folder))
    put_on_record(root)
    assert told(publish(folder, "again")) == first
    assert first.epsilon == read_record(folder / "ledger.json", Ledger).spent_epsilon


def test_another_unit_on_record_is_refused(root, folder, publish, tmp_path):
    put_on_record(root)
    users = write_run(tmp_path / "users" / "shapes", OTHER, unit="user")
    with pytest.raises(UserError, match="unit = 'image': was released on these images, and this run protects one user"):
        publish(users)
    assert not (tmp_path / "out").exists()


def test_a_machine_that_does_not_know_the_images_says_so(root, folder, publish, caplog):
    publish(folder)
    assert "does not know these images: the results folder, the register and --compose alone are counted" in caplog.text
    caplog.clear()
    put_on_record(root)
    publish(folder, "again")
    assert "does not know" not in caplog.text
