import threading

import pytest

from dpsapf.cli import slurm_queue
from dpsapf.cli.alone import user
from dpsapf.cli.slurm_queue import FILE, end_leftovers, note, wait_for_slurm
from dpsapf.support.errors import UserError


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(slurm_queue, "EVERY", 0.01)


def scancel(folder, what="true"):
    (folder / "scancel").write_text(f"#!/bin/sh\necho $* >> {folder}/cancelled; {what}\n")
    (folder / "scancel").chmod(0o755)


def test_jobs_of_an_earlier_start_are_ended_and_waited_for(tmp_path, cluster):
    (tmp_path / FILE).write_text("older\n")
    note(tmp_path, "old")
    scancel(tmp_path, f": > {tmp_path}/squeue.txt")
    cluster("squeue", f"7 {user()}\n")
    end_leftovers(tmp_path, away_min=0)
    assert (tmp_path / "cancelled").read_text() == "--name=older\n--name=old\n" and (tmp_path / FILE).read_text() == ""
    note(tmp_path, "own")
    assert (tmp_path / FILE).read_text() == f"own {user()}\n"


def test_a_start_whose_jobs_do_not_end_is_not_forgotten(tmp_path, cluster):
    note(tmp_path, "stuck")
    scancel(tmp_path)
    cluster("squeue", f"7 {user()}\n")
    end_leftovers(tmp_path, away_min=0, patience=0.0)
    assert (tmp_path / FILE).read_text() == f"stuck {user()}\n"


def test_jobs_of_another_user_are_told_and_stay_noted(tmp_path, cluster):
    (tmp_path / FILE).write_text("theirs someone\n")
    scancel(tmp_path)
    cluster("squeue", "7 someone\n8 someone\n")
    with pytest.raises(UserError, match="user someone still makes them with job 7, 8: .* let someone say: scancel --name=theirs"):
        end_leftovers(tmp_path, away_min=0)
    assert (tmp_path / FILE).read_text() == "theirs someone\n" and not (tmp_path / "cancelled").exists()
    cluster("squeue", "")
    cluster("scontrol", "PrivateData             = none\n")
    end_leftovers(tmp_path, away_min=0)
    assert (tmp_path / FILE).read_text() == ""


def test_jobs_that_the_cluster_hides_are_taken_to_be_there(tmp_path, cluster, monkeypatch):
    (tmp_path / FILE).write_text("theirs someone\n")
    scancel(tmp_path)
    cluster("squeue", "")
    cluster("scontrol", "Something = jobs\nPrivateData             = accounts,jobs\n")
    monkeypatch.setattr(slurm_queue.os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=f"Slurm hides .*: let someone say: scancel --name=theirs; rm .*{FILE}"):
        end_leftovers(tmp_path, away_min=0)
    assert (tmp_path / FILE).read_text() == "theirs someone\n"


def test_nothing_is_forgotten_while_slurm_does_not_answer(tmp_path, cluster):
    note(tmp_path, "old")
    cluster("squeue", "", 1)
    with pytest.raises(UserError, match="jobs of an earlier start may be there"):
        end_leftovers(tmp_path, away_min=0)
    assert (tmp_path / FILE).read_text() == f"old {user()}\n"


def test_slurm_is_waited_for_until_it_answers_and_no_longer_than_is_said(tmp_path, cluster, caplog):
    cluster("squeue", "", 1)
    assert not wait_for_slurm(minutes=0.001)
    ends = threading.Event()
    ends.set()
    assert not wait_for_slurm(minutes=60, ends=ends)
    threading.Timer(0.2, lambda: cluster("squeue", "")).start()
    caplog.clear()
    assert wait_for_slurm(minutes=1)
    assert [record.message.split(":")[0] for record in caplog.records] == ["Slurm does not answer", "Slurm answers again"]
    caplog.clear()
    assert wait_for_slurm(minutes=1) and not caplog.records
