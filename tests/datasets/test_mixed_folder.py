"""Every file of a folder is in the prepared dataset with the right pixels, or named with what to do about it."""

import itertools
import os
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from dpsapf.cli.main import main
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.records import as_json
from tests.datasets.pictures import SIDE, UPRIGHT, contents, drawn, encoded, expected, stored

CASES = [("PNG", mode) for mode in ("1", "L", "P", "P+", "RGB", "RGB+", "RGBA", "LA", "I;16", "deep")]
CASES += [("JPEG", mode) for mode in ("L", "RGB", "CMYK")]
CASES += [(kind, "RGB") for kind in ("WEBP", "TIFF", "GIF", "BMP", "AVIF", "cut", "text")]
PLACES = ("class folder", "link to a file", "link to a folder", "too deep", "top", "broken link", "other class")
SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "text": ".txt", "cut": ".png"}


def belongs(kind, mode, place, channels, convert):
    """Whether a file is to be read."""
    own = {1: ("L",), 3: ("RGB",)}[channels]
    readable = kind in ("PNG", "JPEG") and mode != "deep" and (convert or mode in own)
    return readable and place in ("class folder", "link to a file", "link to a folder")


FILES = st.tuples(
    st.sampled_from(CASES),
    st.sampled_from([None, *UPRIGHT]),
    st.sampled_from([*PLACES[:3], *PLACES[:3], *PLACES[3:]]),
    st.booleans(),
    st.sampled_from(["NFC", "NFD"]),
)


def planted(root, number, case, orientation, place, named_otherwise, form):
    """Write one file into a source; what names it in an error, and its contents."""
    kind, mode = case
    suffix = (
        ".png" if named_otherwise and kind in ("WEBP", "TIFF", "GIF", "BMP", "AVIF") else SUFFIX.get(kind, f".{kind.lower()}")
    )
    folder, name = unicodedata.normalize(form, "café"), f"{number:02}{suffix}"
    data = contents(number, kind, mode, orientation)
    where = {"too deep": f"{folder}/deep{number}", "top": "", "other class": f"strange{number:02}"}.get(place, folder)
    if place == "link to a folder":
        folder = f"{folder}-{number}"
        where = folder
    path = root / "source" / where / name
    target = root / "elsewhere" / where / name if "link" in place else path
    for each in (path, target):
        each.parent.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(exist_ok=True)
    if place != "broken link":
        target.write_bytes(data)
    if place == "link to a folder":
        path.parent.symlink_to(target.parent)
    elif "link" in place:
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
    return (where if place == "other class" else f"{where}/{name}".lstrip("/")), data


def packed_into(root):
    """A .zip of the source, with the files that its links lead to."""
    with zipfile.ZipFile(root / "source.zip", "w") as archive:
        for folder, _, names in os.walk(root / "source", followlinks=True):
            for path in (Path(folder) / name for name in names):
                archive.write(path, path.relative_to(root / "source"))
    return root / "source.zip"


def plain(root, folder, channels, right, label):
    """Write an image that is nothing special, so that the class has one."""
    path = root / "source" / folder / "a.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(drawn(90 + label, {1: "L", 3: "RGB"}[channels])))
    right[(label, stored(path.read_bytes()).tobytes())] += 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(FILES, min_size=1, max_size=12),
    channels=st.sampled_from([1, 3]),
    convert=st.booleans(),
    packed=st.booleans(),
    clean=st.booleans(),
    form=st.sampled_from(["NFC", "NFD"]),
)
def test_every_file_is_prepared_or_named(tmp_path_factory, make_entry, capsys, files, channels, convert, packed, clean, form):
    """Half of the folders have nothing wrong in them."""
    files = [file for file in files if not clean or belongs(*file[0], file[2], channels, convert)]
    root = tmp_path_factory.mktemp("mixed")
    classes, right, wrong = ["café", "dog"], Counter(), []
    plain(root, "café", channels, right, 0)
    plain(root, "dog", channels, right, 1)
    for number, (case, orientation, place, named_otherwise, written) in enumerate(files):
        where, data = planted(root, number, case, orientation, place, named_otherwise, written)
        if place == "link to a folder":
            classes.append(f"café-{number}")
        if belongs(*case, place, channels, convert):
            label = len(classes) - 1 if place == "link to a folder" else 0
            right[(label, expected(data, case[1], orientation, channels).tobytes())] += 1
        else:
            wrong.append(where)
    linked = any(place == "broken link" for _, _, place, _, _ in files)
    entry = make_entry(
        source=str(packed_into(root) if packed and not linked else root / "source"),
        classes=tuple(unicodedata.normalize(form, name) for name in classes),
        prompts=tuple(classes),
        resolution=SIDE,
        channels=channels,
        convert=convert,
        validation=0,
        test=0,
    )
    status, told, arrays = told_by(entry, root, capsys)
    if wrong:
        lines = [line for line in told.splitlines() if "images in class(es)" not in line]
        assert status == 2 and arrays is None and len(lines) == len(wrong), told
        assert all(sum(name in line and ": " in line for line in lines) == 1 for name in wrong), told
    else:
        assert status == 0, told
        found = zip(arrays["labels"], arrays["images"], strict=True)
        assert Counter((int(label), image.tobytes()) for label, image in found) == right


@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_right_in_every_orientation(tmp_path, make_entry, capsys, channels):
    """All that can be converted, at once: what the folders above draw by chance."""
    right = Counter()
    plain(tmp_path, "dog", channels, right, 1)
    cases = [case for case in CASES if belongs(*case, "class folder", channels, True)]
    for number, (case, orientation) in enumerate(itertools.product(cases, [None, *UPRIGHT])):
        _, data = planted(tmp_path, number, case, orientation, "class folder", False, "NFC")
        right[(0, expected(data, case[1], orientation, channels).tobytes())] += 1
    keys = {"source": str(tmp_path / "source"), "classes": ("café", "dog"), "resolution": SIDE, "validation": 0, "test": 0}
    status, told, arrays = told_by(make_entry(**keys, channels=channels, convert=True), tmp_path, capsys)
    assert status == 0, told
    found = zip(arrays["labels"], arrays["images"], strict=True)
    assert Counter((int(label), image.tobytes()) for label, image in found) == right


def told_by(entry: DatasetEntry, root, capsys):
    (root / "registry.yaml").write_text(yaml.safe_dump({"mine": as_json(entry)}))
    files = {key: root / "out" / name for key, name in (("archive", "a.safetensors"), ("record", "r.json"), ("preview", "p.png"))}
    options = [f"--{key}={path}" for key, path in files.items()]
    capsys.readouterr()
    status = main(["prepare-dataset", "--name=mine", f"--registry={root / 'registry.yaml'}", *options])
    archive = files["archive"]
    return status, capsys.readouterr().err, load_file(archive) if archive.exists() else None
