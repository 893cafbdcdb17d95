import multiprocessing
import os
from pathlib import Path

import pytest
import requests
import torch
import yaml

from dpsapf.evaluation import weights
from dpsapf.evaluation.weights import (
    CLEAN_FID,
    DINOV2,
    PUBLISHED,
    PYTORCH_FID,
    fetch_evaluation_weights,
    library_copies,
    obtain,
    read_weights,
)
from dpsapf.experiment.registries import ProtocolEntry, load_registry
from dpsapf.experiment.stages import FetchEvaluationWeights
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from tests.evaluation.networks import torchscript

CONFIG = Path(__file__).parents[2] / "config"


def protocol(network=CLEAN_FID, **changes):
    values = {"feature_network": network, "feature_resolution": 299, "resize": "bicubic"}
    return ProtocolEntry(**(values | {"classifiers": (), "classifier_steps": 1} | changes))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """clean-fid's file at its owner's, which is a folder here; libraries have no copies."""
    (tmp_path / "owner").mkdir()
    original = torchscript(tmp_path / "owner" / "inception-2015-12-05.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "library_copies", lambda name: [])
    calls = []

    def download(wanted):
        calls.append(wanted.urls)
        Path(wanted.file).parent.mkdir(parents=True, exist_ok=True)
        Path(wanted.file).write_bytes(original.read_bytes())

    monkeypatch.setattr(weights, "download", download)
    return original, calls


def test_weights_are_downloaded_once_and_read(published):
    original, calls = published
    wanted = protocol(feature_sha256=sha256(original))
    assert read_weights(wanted) == read_weights(wanted) == original.read_bytes()
    assert calls == [PUBLISHED[CLEAN_FID].urls] and Path(PUBLISHED[CLEAN_FID].file).exists()


def test_a_download_of_another_digest_is_not_kept(published):
    with pytest.raises(UserError, match="SHA-256.*must be 0000"):
        obtain(protocol(feature_sha256="0" * 64))
    assert not Path(PUBLISHED[CLEAN_FID].file).exists()


def test_a_local_file_is_read_by_its_digest_and_a_truncated_one_refused_and_left(published):
    original, calls = published
    path, wanted = Path(PUBLISHED[CLEAN_FID].file), protocol(feature_sha256=sha256(original))
    path.parent.mkdir(parents=True)
    path.write_bytes(original.read_bytes()[:-1])
    for use in (obtain, read_weights):
        with pytest.raises(UserError, match=r"inception-2015-12-05.pt.*must be .*delete it.*fetch-evaluation-weights.*clean-fid"):
            use(wanted)
    assert path.exists() and not calls
    path.write_bytes(original.read_bytes())
    assert read_weights(wanted) == original.read_bytes() and not calls


def test_bytes_that_change_after_the_check_are_not_read(published, monkeypatch):
    """What is returned was digested itself: a file that is swapped in between is refused."""
    original, _ = published
    wanted = protocol(feature_sha256=sha256(original))
    path = obtain(wanted)
    monkeypatch.setattr(weights, "obtain", lambda _: path)
    path.write_bytes(b"swapped")
    with pytest.raises(UserError, match="SHA-256"):
        read_weights(wanted)


def test_a_librarys_copy_of_the_right_digest_is_taken_and_another_left_alone(published, tmp_path, monkeypatch):
    original, calls = published
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"cut off")
    monkeypatch.setattr(weights, "library_copies", lambda name: [tmp_path / "none.pt", wrong, original])
    assert obtain(protocol(feature_sha256=sha256(original))).read_bytes() == original.read_bytes()
    assert not calls and wrong.read_bytes() == b"cut off"
    assert sorted(file.name for file in Path("data/networks").iterdir()) == [
        ".inception-2015-12-05.pt.lock",
        "inception-2015-12-05.pt",
    ]


def test_libraries_copies_are_where_the_libraries_put_them(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    names = [path.relative_to(tmp_path / "checkpoints").name for path in library_copies(PYTORCH_FID)]
    assert names == ["pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"]
    assert [path.name for path in library_copies(CLEAN_FID)] == ["inception-2015-12-05.pt"] and library_copies(DINOV2) == []


def fetch_counting(folder, digest, start, counted):
    os.chdir(folder)
    weights.library_copies = lambda name: []

    def download(wanted):
        with Path(counted).open("a") as file:
            file.write("x")
        path = Path(wanted.file)
        path.write_bytes(b"")  # as a download that is under way would leave it
        start.wait(0.3)
        path.write_bytes((Path(folder) / "owner" / "inception-2015-12-05.pt").read_bytes())

    weights.download = download
    obtain(protocol(feature_sha256=digest))


def test_concurrent_processes_fetch_one_after_the_other(published, tmp_path):
    original, _ = published
    context = multiprocessing.get_context("fork")
    event, counted = context.Event(), tmp_path / "counted"
    arguments = (tmp_path, sha256(original), event, counted)
    jobs = [context.Process(target=fetch_counting, args=arguments) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 4 and counted.read_text() == "x"


def test_a_node_without_network_is_told_where_to_get_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "library_copies", lambda name: [])

    def fail(*args, **kwargs):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr("dpsapf.support.download._fetch", fail)
    with pytest.raises(
        UserError, match=r"cannot be downloaded.*no route.*mseitzer/pytorch-fid.*put it at data/networks"
    ) as caught:
        obtain(protocol(PYTORCH_FID, feature_sha256="0" * 64))
    assert "\n" not in str(caught.value)


def test_a_published_network_without_a_digest_and_an_unknown_one_are_refused():
    with pytest.raises(UserError, match="feature_sha256 = None: .*pin the SHA-256"):
        read_weights(protocol())
    with pytest.raises(UserError, match="feature_network = 'clean-fid:tiny': must be package:NAME or one of clean-fid:inception"):
        read_weights(protocol("clean-fid:tiny"))


def test_the_command_writes_what_is_there_and_refuses_a_packaged_network(published, tmp_path):
    original, _ = published
    entries = {"mine": protocol(feature_sha256=sha256(original)).model_dump(mode="json")}
    entries["packaged"] = entries["mine"] | {"feature_network": "package:x"}
    (tmp_path / "protocols.yaml").write_text(yaml.safe_dump(entries))
    told = {"registry": tmp_path / "protocols.yaml", "out": tmp_path / "fetched.txt"}
    fetch_evaluation_weights(FetchEvaluationWeights(protocol="mine", **told))
    assert (tmp_path / "fetched.txt").read_text() == f"{PUBLISHED[CLEAN_FID].file}\n"
    with pytest.raises(UserError, match="packaged: nothing to fetch"):
        fetch_evaluation_weights(FetchEvaluationWeights(protocol="packaged", **told))


def test_every_registered_protocol_pins_the_digest_of_its_network():
    for name, item in load_registry(CONFIG / "protocols.yaml", ProtocolEntry).items():
        assert len(item.feature_sha256) == 64, name
        assert item.feature_network.startswith("package:") or item.feature_network in PUBLISHED, name
    assert all(wanted.urls and wanted.page.startswith("https://") for wanted in PUBLISHED.values())
