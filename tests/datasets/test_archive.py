import time
import zipfile

import numpy as np
import pytest

from dpsapf.datasets.archive import write_archive

ARRAYS = {"images": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), "labels": np.array([1, 0])}


def test_what_is_written_is_read_without_pickles(tmp_path):
    write_archive(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive.files == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert archive[name].dtype == array.dtype
            assert np.array_equal(archive[name], array)


def test_bytes_do_not_depend_on_time_or_memory_layout(tmp_path, monkeypatch):
    write_archive(tmp_path / "a.npz", ARRAYS)
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((2031, 5, 6, 7, 8, 9, 0, 0, 0)))
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_archive(tmp_path / "b.npz", {name: np.repeat(array, 2, axis=0)[::2] for name, array in ARRAYS.items()})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_members_are_stored_with_a_fixed_date(tmp_path):
    write_archive(tmp_path / "a.npz", ARRAYS)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        found = {(info.date_time, info.compress_type) for info in archive.infolist()}
    assert found == {((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)}


def test_other_arrays_make_other_bytes(tmp_path):
    write_archive(tmp_path / "a.npz", ARRAYS)
    write_archive(tmp_path / "b.npz", ARRAYS | {"labels": np.array([0, 1])})
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "b.npz").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fill_the_disk(file, **arrays):
        file.write(b"half an archive")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        write_archive(tmp_path / "a.npz", ARRAYS)
    assert not list(tmp_path.iterdir())
