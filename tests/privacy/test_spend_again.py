"""The owner's word sets a run free for one more release."""

import pytest

from dpsapf.cli.main import main
from dpsapf.experiment.stages import SpendAgain
from dpsapf.privacy.spend_again import spend_again
from dpsapf.support.errors import UserError
from tests.published_run import put_on_record, spec, write_run


@pytest.fixture
def root(tmp_path):
    return tmp_path / "results" / "shapes"


def test_the_owners_word_names_what_is_on_record(root, capsys):
    folder = write_run(root)
    put_on_record(root)
    assert main(["spend-again", "--run", folder.name]) == 0
    told = capsys.readouterr().err
    assert f"{folder.name} released dp-sgd on" in told and "noise multiplier 0.7, 4 steps at sampling rate 0.1" in told
    assert "every later plan and release on these images counts what it spent" in told
    assert main(["spend-again", "--run", folder.name]) == 2, "said twice, it would let it be released twice"
    assert f"set free already: must be one of {spec().scores_id}" in capsys.readouterr().err


def test_a_run_that_nobody_knows_cannot_be_set_free(root, spends_folder):
    with pytest.raises(UserError, match="--run = 'x': is not on record, or is set free already: nothing is, in "):
        spend_again(SpendAgain(run="x"))
    write_run(root)
    put_on_record(root)
    before = (spends_folder / "spends.jsonl").read_bytes()
    with pytest.raises(
        UserError, match="must be one of shapes--public-mini--.*did you mean shapes--public-mini--attention-share"
    ):
        spend_again(SpendAgain(run=spec().scores_id + "1"))
    assert (spends_folder / "spends.jsonl").read_bytes() == before
