import io
import tarfile
from pathlib import Path

import pytest
import yaml

from dpsapf.datasets import celeba, octmnist
from dpsapf.datasets.fetch import fetch_dataset
from dpsapf.experiment.registries import DatasetEntry, load_registry
from dpsapf.experiment.stages import FetchDataset
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.records import as_json

REGISTRY = Path(__file__).parents[2] / "config" / "datasets.yaml"


@pytest.fixture
def fetch(tmp_path, make_entry):
    def run(*downloads):
        item = make_entry(source=str(tmp_path / "source"), downloads=[{"page": "the page", **download} for download in downloads])
        (tmp_path / "datasets.yaml").write_text(yaml.safe_dump({"mine": as_json(item)}))
        fetch_dataset(FetchDataset(name="mine", registry=tmp_path / "datasets.yaml", out=tmp_path / "there.txt"))
        return (tmp_path / "there.txt").read_text().splitlines()

    return run


def packed(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_every_file_that_is_missing_has_its_line(fetch, tmp_path):
    (tmp_path / "b").write_bytes(b"there")
    with pytest.raises(UserErrors) as raised:
        fetch({"file": str(tmp_path / "a")}, {"file": str(tmp_path / "b")}, {"file": str(tmp_path / "c")})
    lines = str(raised.value).splitlines()
    assert len(lines) == 2 and all("get" in line and "the page" in line for line in lines)
    assert str(tmp_path / "a") in lines[0] and str(tmp_path / "c") in lines[1]


def test_what_is_there_is_not_fetched(fetch, tmp_path):
    (tmp_path / "source").mkdir()
    assert fetch({"file": str(tmp_path / "a")}) == [str(tmp_path / "source")]


def test_an_archive_is_unpacked_once(fetch, tmp_path):
    archive = packed(tmp_path / "a.tar.gz", {"x/1.png": b"one", "metadata.csv": b"two"})
    wanted = {"file": str(archive), "unpack": str(tmp_path / "folder")}
    assert fetch(wanted) == [str(tmp_path / "folder")]
    assert (tmp_path / "folder" / "x" / "1.png").read_bytes() == b"one"
    (tmp_path / "folder" / "metadata.csv").write_bytes(b"changed")
    fetch(wanted)
    assert (tmp_path / "folder" / "metadata.csv").read_bytes() == b"changed"


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/dpsapf-outside.png", "x/../../outside.png"])
def test_an_archive_cannot_write_outside_its_folder(fetch, tmp_path, name):
    archive = packed(tmp_path / "a.tar.gz", {"x/1.png": b"one", name: b"two"})
    before = sorted(tmp_path.rglob("*"))
    try:
        fetch({"file": str(archive), "unpack": str(tmp_path / "folder")})
    except UserErrors as error:
        assert "cannot be unpacked" in str(error)
        assert not (tmp_path / "folder").exists()
    inside = tmp_path / "folder"
    assert all(
        path in before or path == inside or inside in path.parents or path.name in ("datasets.yaml", "there.txt")
        for path in tmp_path.rglob("*")
    )
    assert not Path("/tmp/dpsapf-outside.png").exists()


def test_a_damaged_archive_is_named_and_leaves_nothing(fetch, tmp_path):
    archive = packed(tmp_path / "a.tar.gz", {"1.png": bytes(100_000)})
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(UserErrors, match="cannot be unpacked .*delete it and get it again"):
        fetch({"file": str(archive), "unpack": str(tmp_path / "folder")})
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "datasets.yaml"}


def test_an_entry_without_downloads_is_said():
    with pytest.raises(UserError, match="name = 'digits': its entry names no downloads"):
        fetch_dataset(FetchDataset(name="digits", registry=REGISTRY))


def test_what_is_fetched_has_the_digests_that_the_loaders_check():
    entries = load_registry(REGISTRY, DatasetEntry)
    assert [download.md5 for download in entries["octmnist"].downloads] == [octmnist.MD5]
    assert {Path(download.file).name: download.md5 for download in entries["celeba"].downloads} == celeba.MD5


def test_the_published_datasets_say_where_they_are():
    """Of a digest or a size that their owners publish; what is fetched is what the entry reads."""
    entries = {name: item for name, item in load_registry(REGISTRY, DatasetEntry).items() if item.downloads}
    assert {"cifar10", "octmnist", "celeba", "camelyon17"} <= set(entries)
    for item in entries.values():
        for download in item.downloads:
            assert download.md5 or download.size
            assert download.target == Path(item.source) or Path(item.source) in download.target.parents
