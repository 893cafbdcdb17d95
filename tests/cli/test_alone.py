import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpsapf.cli import alone
from dpsapf.cli.alone import hold, user
from dpsapf.support.errors import UserError

CODE = (
    "import sys, time; from pathlib import Path; from dpsapf.cli.alone import hold; "
    "kept = hold(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"
)


def test_a_second_process_is_told_who_is_there(tmp_path):
    who = f"process {os.getpid()} of .*, started by {user()}, works on it: wait for its end"
    with hold(tmp_path / "results"), pytest.raises(UserError, match=who):
        hold(tmp_path / "results")
    hold(tmp_path / "results").close()
    with hold(tmp_path / "other"), hold(tmp_path / "results"):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert holder.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match=f"process {holder.pid} of"):
        hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    hold(tmp_path).close()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(alone.fcntl, "flock", refuse)
    hold(tmp_path).close()
    assert "its file system has no locks (No locks available): start one Snakemake only on it" in caplog.text


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=rf"user {user()} cannot write there \({os.strerror(number)}\): ask its owner"):
        hold(tmp_path / "results")
