import errno
import fcntl
import threading

import pytest

from dpsapf.support.files import atomic, exclusive, sha256, whole, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_text_is_written_into_folders_that_are_made(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "ä")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "ä"


def test_digest_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256(tmp_path) != first
    (tmp_path / "b").write_text("2")
    assert sha256(tmp_path) != first


def test_one_at_a_time_enters_the_block(tmp_path):
    entered, leave = threading.Event(), threading.Event()
    order = []

    def first():
        with exclusive(tmp_path / "new" / ".lock"):
            entered.set()
            leave.wait(5)
            order.append("first")

    def second():
        with exclusive(tmp_path / "new" / ".lock"):
            order.append("second")

    jobs = [threading.Thread(target=job) for job in (first, second)]
    jobs[0].start()
    assert entered.wait(5)
    jobs[1].start()
    jobs[1].join(0.2)
    assert order == [] and jobs[1].is_alive()
    leave.set()
    for job in jobs:
        job.join(5)
    assert order == ["first", "second"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_told_and_another_failure_raised(tmp_path, monkeypatch, caplog, number):
    def fail(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", fail)
    if number == errno.EIO:
        with pytest.raises(OSError, match="no"), exclusive(tmp_path / ".lock"):
            pass
    else:
        with exclusive(tmp_path / ".lock"):
            assert "has no locks" in caplog.text


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), whole(tmp_path / "a" / "out") as folder:
        (folder / "half").write_text("x")
        raise KeyError
    assert list((tmp_path / "a").iterdir()) == []
    with whole(tmp_path / "a" / "out") as folder:
        (folder / "file").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["a", "a/out", "a/out/file"]
