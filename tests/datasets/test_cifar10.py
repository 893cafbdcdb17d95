import os
import pickle

import numpy as np
import pytest

from dpsapf.datasets import cifar10 as module
from dpsapf.datasets.cifar10 import cifar10, read_batch
from dpsapf.datasets.images import resize
from dpsapf.support.errors import UserError
from tests.all_images import all_images
from tests.published_files import CIFAR_FILES, cifar_batch, cifar_files, cifar_images, md5, tarred

NAMES = tuple("0123456789")


@pytest.fixture
def make(tmp_path, plant, make_entry, monkeypatch):
    """An entry for files that are the published ones, as far as digests and counts tell."""

    def build(files, *, archive=False, **changes):
        monkeypatch.setattr(module, "MD5", {name: md5(files.get(name, b"")) for name in CIFAR_FILES})
        monkeypatch.setattr(module, "COUNTS", {"train": 30, "test": 6})
        source = tarred(tmp_path / "cifar-10-python.tar.gz", files) if archive else plant(files)
        values = {"loader": "cifar10", "source": str(source), "classes": NAMES, "prompts": NAMES, "resolution": 32, "test": 0}
        return make_entry(**values | changes)

    return build


def test_the_official_numbers():
    assert module.COUNTS == {"train": 50_000, "test": 10_000} and module.CLASSES == 10
    assert list(module.MD5) == CIFAR_FILES and all(len(digest) == 32 for digest in module.MD5.values())


@pytest.mark.parametrize("archive", [False, True])
def test_folder_and_archive_give_every_pixel_label_and_split(make, archive):
    images = cifar_images()
    source = cifar10(make(cifar_files(images), archive=archive))
    assert np.array_equal(all_images(source), np.concatenate([images[name][0] for name in CIFAR_FILES]))
    assert np.array_equal(source.labels, np.concatenate([images[name][1] for name in CIFAR_FILES]))
    assert source.labels.dtype == np.int64 and source.users is None
    assert source.splits.tolist() == ["train"] * 30 + ["test"] * 6


def test_nothing_is_unpacked_to_the_disk(make, tmp_path):
    entry = make(cifar_files(), archive=True)
    before = sorted(tmp_path.rglob("*"))
    all_images(cifar10(entry))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pickle_of_python_2_is_what_the_generator_makes():
    rows = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    batch = pickle.loads(cifar_batch(rows, [4, 9]), encoding="bytes")  # noqa: S301
    assert sorted(batch) == [b"batch_label", b"data", b"filenames", b"labels"] and np.array_equal(batch[b"data"], rows)


def test_another_resolution(make):
    images = cifar_images()
    shown = all_images(cifar10(make(cifar_files(images), resolution=48)))
    assert np.array_equal(shown[:6], resize(images["data_batch_1"][0], 48))


def test_batches_are_short(make, monkeypatch):
    entry = make(cifar_files())
    monkeypatch.setattr(module, "BATCH", 8)
    assert [len(batch) for batch in cifar10(entry).decoded(1)] == [8, 8, 8, 8, 4]


def test_the_reference_s_number_of_training_images(make):
    images = np.concatenate([pair[0] for pair in cifar_images().values()])
    source = cifar10(make(cifar_files(), train=20, validation=0))
    assert [int((source.splits == name).sum()) for name in ("train", "validation", "test")] == [20, 10, 6]
    assert np.array_equal(all_images(source), images), "all are used, in their order"


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(make, tmp_path, protocol):
    """Even one whose digest is the expected one."""
    files = cifar_files() | {"data_batch_2": pickle.dumps({"data": Harmful(tmp_path / "harm")}, protocol)}
    with pytest.raises(UserError, match=r"data_batch_2.*asks for \w+\.mkdir, and may have arrays only"):
        cifar10(make(files))
    assert not (tmp_path / "harm").exists()
    pickle.loads(files["data_batch_2"])  # noqa: S301
    assert (tmp_path / "harm").exists(), "it would have"


@pytest.mark.parametrize("asked", ["numpy.testing._private.utils runstring", "builtins eval", "builtins getattr", "numpy load"])
def test_only_what_arrays_need_is_admitted(asked):
    module_name, name = asked.split()
    data = b"\x80\x02c" + f"{module_name}\n{name}\n".encode() + b"."
    with pytest.raises(UserError, match=rf"asks for {module_name}\.{name}"):
        read_batch("x", data, md5(data))


def test_another_digest_is_refused_before_anything_is_read(make, tmp_path, monkeypatch):
    entry = make(cifar_files())
    monkeypatch.setattr(module, "ArrayUnpickler", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(UserError, match=r"data_batch_1 = 'md5 .*': must be 0{32}"):
        monkeypatch.setitem(module.MD5, "data_batch_1", "0" * 32)
        cifar10(entry)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_archive_is_told(make, tmp_path, kept):
    entry = make(cifar_files(), archive=True)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match="source = .*truncated") as caught:
        cifar10(entry)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_archive_is_told(make, tmp_path):
    entry = make(cifar_files(), archive=True)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"must be cifar-10-python\.tar\.gz or its folder"):
        cifar10(entry)


@pytest.mark.parametrize("archive", [False, True])
def test_a_missing_batch_is_named(make, archive):
    files = {name: data for name, data in cifar_files().items() if name != "data_batch_4"}
    with pytest.raises(UserError, match="lacks data_batch_4"):
        cifar10(make(files, archive=archive))


def test_a_member_of_another_folder_or_a_huge_one_is_not_read(make, tmp_path, monkeypatch):
    entry = make(cifar_files(), archive=True)
    tarred(tmp_path / "cifar-10-python.tar.gz", cifar_files(), folder="elsewhere")
    with pytest.raises(UserError, match="lacks data_batch_1, data_batch_2"):
        cifar10(entry)
    tarred(tmp_path / "cifar-10-python.tar.gz", cifar_files())
    cifar10(entry)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UserError, match="lacks data_batch_1, data_batch_2"):
        cifar10(entry)


def batch_of(shape=(2, 3072), labels=(0, 1)):
    return cifar_batch(np.zeros(shape, np.uint8), labels)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (batch_of(labels=[0, 10]), "x = 'label 10': labels must be 0 to 9"),
        (batch_of(labels=[-1, 0]), "x = 'label -1'"),
        (batch_of(labels=[0]), "no batch of CIFAR-10.*for 1 labels"),
        (batch_of(shape=(2, 1024)), r"uint8 \(2, 1024\) for 2"),
        (batch_of().replace(b"U\x02u1", b"U\x02i1"), r"data of int8 \(2, 3072\)"),
        (batch_of().replace(b"U\x02u1", b"U\x01O"), "no batch of CIFAR-10"),
        (pickle.dumps({"data": None, "labels": [0]}), "no batch of CIFAR-10"),
        (pickle.dumps({"data": None, "labels": "ab"}), "no batch of CIFAR-10"),
        (pickle.dumps({"labels": []}), "no batch of CIFAR-10"),
        (pickle.dumps([1, 2]), "no batch of CIFAR-10"),
        (batch_of()[:200], "no batch of CIFAR-10"),
        (b"", "no batch of CIFAR-10"),
    ],
)
def test_what_is_no_batch_is_told_in_one_line(data, named):
    with pytest.raises(UserError, match=named) as caught:
        read_batch("x", data, md5(data))
    assert "\n" not in str(caught.value)


def test_another_number_of_images_is_told(make, monkeypatch):
    entry = make(cifar_files())
    monkeypatch.setattr(module, "COUNTS", {"train": 30, "test": 7})
    with pytest.raises(UserError, match="has 6 test images and must have 7"):
        cifar10(entry)
