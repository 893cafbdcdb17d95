import io
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from dpsapf.aggregation.collect import collect_external
from dpsapf.cli.main import main
from dpsapf.evaluation.evaluate import evaluate
from dpsapf.evaluation.external import import_images, labelled_images
from dpsapf.experiment.records import CLAIMED, External, Fidelity, Metrics, Utility
from dpsapf.experiment.stages import CollectExternal, ImportImages
from dpsapf.support.checked import parse
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json, read_record
from tests.evaluation.test_evaluate import options, reference

COUNT, SIDE = 24, 32


@pytest.fixture
def made():
    """Images and labels of two classes, class by class."""
    pixels = np.random.default_rng(3).integers(0, 256, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    return pixels, np.repeat(np.arange(2), COUNT // 2)


def as_folder(made, path, classes=("a", "b"), suffix=".png"):
    for place, (image, label) in enumerate(zip(*made, strict=True)):
        (path / classes[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / classes[label] / f"{place:03d}{suffix}")
    return path


def as_zip(made, path):
    folder = as_folder(made, path.with_suffix(""))
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"all/{file.relative_to(folder)}")  # one folder around everything
    shutil.rmtree(folder)
    return path


def as_npz(made, path):
    np.savez(path, images=made[0], labels=made[1])
    return path


def as_dpimagebench(made, path):
    np.savez(path, x=(made[0].transpose(0, 3, 1, 2) / 255).astype(np.float32), y=made[1])
    return path


FORMS = {"folder": as_folder, "theirs.zip": as_zip, "theirs.npz": as_npz, "gen.npz": as_dpimagebench}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels_and_labels(made, dataset_record, tmp_path, form):
    read = labelled_images(FORMS[form](made, tmp_path / form), dataset_record, threads=2)
    np.testing.assert_array_equal(read.images[:], made[0])
    np.testing.assert_array_equal(read.labels, made[1])
    assert read.images.dtype == np.uint8 and read.labels.dtype == np.int64


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_evaluated_alike(made, folder, tmp_path, form):
    reference(folder)
    evaluate(options(folder, synthetic=as_npz(made, tmp_path / "first.npz")))
    told = [read_record(folder / f"{name}.json", kind) for name, kind in (("fidelity", Fidelity), ("utility", Utility))]
    again = {name: tmp_path / f"{name}.json" for name in ("fidelity", "utility")}
    evaluate(options(folder, synthetic=FORMS[form](made, tmp_path / form), **again))
    assert [read_record(again[name], type(record)) for name, record in zip(again, told, strict=True)] == told


def test_colour_stays_colour_and_grey_is_repeated(made, dataset_record, tmp_path):
    assert dataset_record.channels == 1
    np.testing.assert_array_equal(labelled_images(as_folder(made, tmp_path / "colour"), dataset_record).images, made[0])
    folder = as_folder((made[0][..., 0], made[1]), tmp_path / "grey")
    np.savez(tmp_path / "gen.npz", x=made[0][..., 0][:, np.newaxis] / np.float32(255), y=made[1])
    for form in (folder, tmp_path / "gen.npz"):
        np.testing.assert_array_equal(labelled_images(form, dataset_record).images, np.repeat(made[0][..., :1], 3, -1))


def test_classes_that_are_missing_and_superfluous_are_named(made, dataset_record, tmp_path):
    with pytest.raises(UserError, match="'missing: b; superfluous: other': must be the classes of mnist5k: a, b"):
        labelled_images(as_folder(made, tmp_path / "folder", classes=("a", "other")), dataset_record)


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


BAD = {
    "other side": (
        lambda x, y: {"images": x[:, :16, :16], "labels": y},
        "images = '16 x 16': must be 32 x 32",
    ),
    "not square": (lambda x, y: {"images": x[:, :16], "labels": y}, "'32 x 16': must be 32 x 32"),
    "floats": (lambda x, y: {"images": x / 255, "labels": y}, r"must be uint8 \[N, H, W, 3\]"),
    "grey only": (lambda x, y: {"images": x[..., :1], "labels": y}, r"must be uint8 \[N, H, W, 3\]"),
    "other labels": (lambda x, y: {"images": x, "labels": y + 1}, "labels = 2: must be positions in the 2"),
    "negative labels": (lambda x, y: {"images": x, "labels": y - 1}, "labels = -1: must be positions"),
    "too few labels": (lambda x, y: {"images": x, "labels": y[1:]}, r"must be integers \[24\]"),
    "labels that are floats": (lambda x, y: {"images": x, "labels": y * 1.0}, r"must be integers \[24\]"),
    "a class without images": (lambda x, y: {"images": x, "labels": y * 0}, r"of class\(es\) b"),
    "other names": (
        lambda x, y: {"data": x, "labels": y},
        r"arrays = \['labels'\]: must be images and labels",
    ),
    "x of bytes": (lambda x, y: {"x": x.transpose(0, 3, 1, 2), "y": y}, "x = 'uint8"),
    "x last": (lambda x, y: {"x": x / 255, "y": y}, "x = 'float64"),
    "x of another range": (
        lambda x, y: {"x": x.transpose(0, 3, 1, 2) / 127.5 - 1, "y": y},
        r"outside \[0, 1\]",
    ),
    "x with nan": (lambda x, y: {"x": x.transpose(0, 3, 1, 2) * np.nan, "y": y}, r"outside \[0, 1\]"),
    "pickles": (
        lambda x, y: {"images": np.array([Evil()]), "labels": y},
        "must be an .npz without pickled objects",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_archives_are_refused_in_one_line(made, dataset_record, tmp_path, capsys, bad):
    arrays, message = BAD[bad]
    np.savez(tmp_path / "bad.npz", **arrays(*made))
    with pytest.raises(UserError, match=message) as raised:
        labelled_images(tmp_path / "bad.npz", dataset_record)
    assert "\n" not in str(raised.value) and "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b"PK no zip", pickle.dumps(Evil())])
def test_what_is_no_archive_is_refused_and_not_unpickled(dataset_record, tmp_path, capsys, data):
    (tmp_path / "bad.npz").write_bytes(data)
    with pytest.raises(UserError, match="unreadable"):
        labelled_images(tmp_path / "bad.npz", dataset_record)
    assert "unpickled" not in capsys.readouterr().out


def test_files_of_another_size_are_refused_not_resized(made, dataset_record, tmp_path):
    folder = as_folder(made, tmp_path / "folder")
    Image.new("RGB", (64, 64)).save(folder / "a" / "big.png")
    with pytest.raises(UserError, match="big.png = '64 x 64': must be 32 x 32: resize as their authors do"):
        labelled_images(folder, dataset_record)


def test_files_elsewhere_and_entries_that_leave_the_zip_are_refused(made, dataset_record, tmp_path):
    folder = as_folder(made, tmp_path / "folder")
    (folder / "readme.txt").write_text("x")
    with pytest.raises(UserError, match="must be CLASS/FILE with a PNG or JPEG file"):
        labelled_images(folder, dataset_record)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        picture = io.BytesIO()
        Image.fromarray(made[0][0]).save(picture, "PNG")
        archive.writestr("../a/x.png", picture.getvalue())
    with pytest.raises(UserError, match="leaves its folder"):
        labelled_images(tmp_path / "evil.zip", dataset_record)


def taken(folder, made, **changes):
    values = {
        "images": as_npz(made, folder / "theirs.npz"),
        "dataset": folder / "dataset.json",
        "external": "theirs",
        "label": "Their method (2025)",
        "public_model": "public-mini",
        "epsilon": 10.0,
        "delta": 1e-5,
        "archive": folder / "run" / "samples.npz",
        "contact_sheet": folder / "run" / "contact_sheet.png",
        "record": folder / "run" / "external.json",
    }
    import_images(ImportImages(**(values | changes)))
    return read_record(folder / "run" / "external.json", External)


def test_what_is_taken_in_says_that_nothing_was_audited(folder, made):
    told = taken(folder, made)
    assert told.claim == CLAIMED == "claimed, not audited by this suite"
    assert (told.claimed_epsilon, told.claimed_delta, told.images) == (10.0, 1e-5, COUNT)
    assert told.run.id == "mnist5k--public-mini--external-theirs--eps10--seed0"
    assert told.samples == sha256(folder / "run" / "samples.npz") and told.source == sha256(folder / "theirs.npz")
    assert {path.name for path in (folder / "run").iterdir()} == {"samples.npz", "contact_sheet.png", "external.json"}
    assert str(folder) not in (folder / "run" / "external.json").read_text()


def test_a_refusal_takes_nothing_in(folder, made):
    with pytest.raises(UserError):
        taken(folder, (made[0], made[1] + 5))
    assert not (folder / "run").exists()


def collected(folder, made, **changes):
    reference(folder)
    taken(folder, made, **changes)
    evaluate(options(folder, synthetic=folder / "run" / "samples.npz"))
    files = {"external": folder / "run" / "external.json", "ceiling": folder / "ceiling.json", "out": folder / "metrics.json"}
    collect_external(CollectExternal(**files, fidelity=folder / "fidelity.json", utility=folder / "utility.json"))
    return read_record(folder / "metrics.json", Metrics)


def test_metrics_of_images_made_elsewhere_never_look_audited(folder, made):
    metrics = collected(folder, made)
    assert metrics.claim == CLAIMED and metrics.spent_epsilon == {} and CLAIMED in metrics.not_for_release
    assert metrics.target_epsilon == 10 and metrics.label == "Their method (2025)" and metrics.trainable_parameters is None
    for changes in ({"claim": None}, {"spent_epsilon": {"pld": 9.9}}, {"not_for_release": None}, {"claim": "audited"}):
        with pytest.raises(UserError):
            parse(Metrics, as_json(metrics) | changes, "metrics.json")
    ours = as_json(metrics)["run"] | {"method": "no-finetune", "external": None}
    with pytest.raises(UserError, match=CLAIMED):
        parse(Metrics, as_json(metrics) | {"run": ours}, "metrics.json")


def test_nothing_made_elsewhere_can_be_planned(folder, capsys):
    """Planning takes methods of this suite only, so that no audit of another group's images can begin."""
    words = ["plan-privacy", "--dataset", str(folder / "dataset.json"), "--candidate-table", str(folder / "dataset.json")]
    words += ["--public-model", "m", "--method", "external", "--steps", "1", "--expected-batch-size", "1", "--out", "x.json"]
    assert main(words) == 2 and "--method = 'external': must be one of" in capsys.readouterr().err


def test_no_epsilon_may_be_claimed(folder, made):
    metrics = collected(folder, made, epsilon=None)
    assert metrics.target_epsilon is None and metrics.run_id == "mnist5k--public-mini--external-theirs--seed0"
