import time
import zipfile

import numpy as np
import pytest

from dpsapf.datasets.archive import stored_rows, write_archive
from dpsapf.support.arrays import Rows

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


@pytest.mark.parametrize("rows", [slice(None), slice(3, 5), slice(4, 99), np.array([5, 0, 0])])
def test_rows_of_a_stored_array_are_numpys_and_are_not_all_read(tmp_path, rows):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    write_archive(tmp_path / "a.npz", {"labels": np.arange(6), "images": images})
    found = stored_rows(tmp_path / "a.npz", "images")
    assert isinstance(found, Rows) and len(found) == 6 and np.array_equal(found[rows], images[rows])
    assert np.array_equal(stored_rows(tmp_path / "a.npz", "labels")[:], np.arange(6))


def test_rows_of_arrays_that_are_not_stored_row_by_row_are_read_whole(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    np.savez_compressed(tmp_path / "compressed.npz", images=images)
    np.savez(tmp_path / "columns.npz", images=np.asfortranarray(images))
    for name in ("compressed", "columns"):
        found = stored_rows(tmp_path / f"{name}.npz", "images")
        assert isinstance(found, np.ndarray) and np.array_equal(found, images)


def test_pickled_rows_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        stored_rows(tmp_path / "objects.npz", "images")
