import zipfile

import numpy as np
import pytest

from dpsapf.datasets import octmnist as module
from dpsapf.datasets.images import resize
from dpsapf.datasets.octmnist import octmnist
from dpsapf.support.errors import UserError
from tests.all_images import all_images
from tests.published_files import md5, octmnist_arrays

NAMES = ("cnv", "dme", "drusen", "normal")
SIZES = {"train": 9, "validation": 5, "test": 4}


@pytest.fixture
def make(tmp_path, make_entry, monkeypatch):
    """An entry for an archive that is the published one, as far as its digest and counts tell."""

    def build(arrays=None, *, data=None, save=np.savez_compressed, **changes):
        path = tmp_path / "octmnist_128.npz"
        if data is None:
            save(path, **octmnist_arrays() if arrays is None else arrays)
        else:
            path.write_bytes(data)
        monkeypatch.setattr(module, "MD5", md5(path.read_bytes()))
        monkeypatch.setattr(module, "COUNTS", SIZES)
        values = {"loader": "octmnist", "source": str(path), "classes": NAMES, "prompts": NAMES, "resolution": 128}
        return make_entry(**values | {"channels": 1, "validation": 0, "test": 0} | changes)

    return build


def test_the_official_numbers():
    assert module.COUNTS == {"train": 97_477, "validation": 10_832, "test": 1_000} and module.CLASSES == 4


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("batch", [1, 4, 256])
def test_every_pixel_label_and_split(make, monkeypatch, save, batch):
    monkeypatch.setattr(module, "BATCH", batch)
    arrays = octmnist_arrays()
    source = octmnist(make(arrays, save=save))
    assert np.array_equal(all_images(source)[..., 0], np.concatenate([arrays[f"{n}_images"] for n in ("train", "val", "test")]))
    assert source.labels.tolist() == [*(np.arange(9) % 4), *(np.arange(5) % 4), *(np.arange(4) % 4)]
    assert source.labels.dtype == np.int64 and source.users is None
    assert source.splits.tolist() == np.repeat(list(SIZES), list(SIZES.values())).tolist()
    assert max(map(len, source.decoded(1))) <= batch


def test_another_resolution(make):
    arrays = octmnist_arrays()
    assert np.array_equal(all_images(octmnist(make(arrays, resolution=32)))[:9], resize(arrays["train_images"], 32))


def test_the_reference_s_number_of_training_images(make):
    arrays = octmnist_arrays()
    source = octmnist(make(arrays, train=6))
    assert [int((source.splits == name).sum()) for name in SIZES] == [6, 3, 4], "the archive's own validation is not used"
    expected = np.concatenate([arrays["train_images"], arrays["test_images"]])
    assert np.array_equal(all_images(source)[..., 0], expected) and len(source.labels) == 13


def test_another_digest_is_told(make, monkeypatch):
    entry = make()
    monkeypatch.setattr(module, "MD5", "0" * 32)
    with pytest.raises(UserError, match=r"octmnist_128\.npz = 'md5 .*must be 0{32}: it is truncated"):
        octmnist(entry)


@pytest.mark.parametrize("kept", [0, 100, 10_000, -30])
def test_a_truncated_archive_of_the_right_digest_is_told(make, tmp_path, kept):
    make()
    entry = make(data=(tmp_path / "octmnist_128.npz").read_bytes()[:kept])
    with pytest.raises(UserError, match=r"must be MedMNIST's octmnist_128\.npz") as caught:
        octmnist(entry)
    assert "\n" not in str(caught.value)


def test_a_damaged_image_is_told_when_it_is_read(make, tmp_path):
    make(save=np.savez)
    data = bytearray((tmp_path / "octmnist_128.npz").read_bytes())
    data[1000] ^= 1
    source = octmnist(make(data=bytes(data)))
    with pytest.raises(UserError, match=r"octmnist_128\.npz \(Bad CRC"):
        all_images(source)


def test_arrays_of_objects_are_not_unpickled(make):
    for name in ("train_labels", "train_images"):
        arrays = octmnist_arrays()
        arrays[name] = np.array([print, None], object)
        with pytest.raises(UserError, match=r"must be MedMNIST's octmnist_128\.npz"):
            octmnist(make(arrays))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"val_labels": np.array([[0], [1], [2], [3], [4]], np.uint8)}, "label 4'?: labels must be 0 to 3"),
        ({"val_labels": np.zeros((4, 1), np.uint8)}, r"val_images is uint8 \(5, 128, 128\) for 4 labels"),
        ({"test_images": np.zeros((4, 64, 64), np.uint8)}, r"test_images is uint8 \(4, 64, 64\)"),
        ({"test_images": np.zeros((4, 128, 128), np.float32)}, "test_images is float32"),
        ({"test_images": np.zeros((4, 128, 128), np.uint8, "F")}, "test_images is"),
        (
            {"test_images": np.zeros((3, 128, 128), np.uint8), "test_labels": np.zeros((3, 1), np.uint8)},
            "has 3 test images and must",
        ),
    ],
)
def test_other_arrays_are_told_in_one_line(make, changes, named):
    with pytest.raises(UserError, match=named) as caught:
        octmnist(make(octmnist_arrays() | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["train_images", "val_labels", "test_images"])
def test_a_missing_array_is_named(make, missing):
    with pytest.raises(UserError, match=rf"{missing}\.npy"):
        octmnist(make({name: array for name, array in octmnist_arrays().items() if name != missing}))


def test_a_missing_archive_is_named(make_entry):
    with pytest.raises(UserError, match=r"source = 'nowhere': does not exist; put octmnist_128\.npz there"):
        octmnist(make_entry())


def test_images_are_read_batch_by_batch(make, monkeypatch):
    """No read asks for more than a batch."""
    entry, asked = make(), []
    read = zipfile.ZipExtFile.read
    source = octmnist(entry)
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: asked.append(n) or read(self, n))
    all_images(source)
    assert max(asked) == 2 * 128 * 128 and min(asked) > 0
