"""What a results folder says was spent is put on record."""

import pytest

from dpsapf.experiment.records import Ledger
from dpsapf.privacy.spend_record import Spent, opened
from dpsapf.support.checked import replace
from dpsapf.support.records import read_record, write_record
from tests.published_run import DP_SGD, SALIENCY, put_on_record, spec, write_run


@pytest.fixture
def root(tmp_path):
    return tmp_path / "results" / "shapes"


def known(root):
    """All that is on record after a results folder was taken in."""
    put_on_record(root)
    with opened() as book:
        return book.of(Spent)


def test_all_that_a_folder_says_was_spent_is_put_on_record_once(root):
    folder = write_run(root)
    first = read_record(folder / "ledger.json", Ledger)
    spent = {(each.subject, each.key): each.release for each in known(root)}
    names = {(spec().scores_id, first.digests["scores"]): SALIENCY, (folder.name, first.weights_digest): DP_SGD}
    assert spent == names and known(root) == known(root)


def test_an_earlier_training_is_known_by_its_kept_ledger(root):
    folder = write_run(root)
    ledger = read_record(folder / "ledger.json", Ledger)
    first, second = "e" * 64, ledger.weights_digest
    write_record(folder / "ledgers" / f"{first[:12]}.json", replace(ledger, weights_digest=first))
    keys = [each.key for each in known(root) if each.release.name == "dp-sgd"]
    assert first != second and sorted(keys) == sorted([first, second])


def test_what_a_folder_counts_from_elsewhere_is_put_on_record_too(root, tmp_path):
    elsewhere = write_run(tmp_path / "elsewhere", spec("dp-lora"))
    write_run(root, spec(epsilon=20.0), prior=(elsewhere / "ledger.json",))
    assert read_record(elsewhere / "ledger.json", Ledger).weights_digest in [each.key for each in known(root)]


def test_seeded_runs_and_other_images_are_left_out(root):
    write_run(root, noise="seed")
    folder = write_run(root, spec("dp-lora"))
    ledger = read_record(folder / "ledger.json", Ledger)
    write_record(folder / "ledger.json", replace(ledger, dataset_id="0" * 64, run=replace(ledger.run, dataset="others")))
    assert {each.key for each in known(root)} == {ledger.weights_digest}
