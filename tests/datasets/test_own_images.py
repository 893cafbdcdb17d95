"""What people's own folders of images look like, and what prepare-dataset says of it."""

import io
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from dpsapf.cli.main import main
from dpsapf.datasets import image_files, loaders
from dpsapf.datasets.images import Source
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json
from tests.datasets.pictures import SIDE, UPRIGHT, encoded, on_white, stored


@pytest.fixture
def prepare(tmp_path, make_entry, capsys):
    """Prepare a source by the command line; its exit status, what it printed, and the arrays that it wrote."""

    def run(source, out="out", **changes):
        folder, registry = tmp_path / out, tmp_path / f"{out}.yaml"
        values = {"resolution": SIDE, "split_seed": 1} | ({"validation": 0, "test": 0} if (source / "train").exists() else {})
        registry.write_text(yaml.safe_dump({"mine": as_json(make_entry(source=str(source), **values | changes))}))
        files = [f"--archive={folder / 'dataset.safetensors'}", f"--record={folder / 'dataset.json'}"]
        status = main(["prepare-dataset", "--name=mine", f"--registry={registry}", *files, f"--preview={folder / 'p.png'}"])
        written = folder / "dataset.safetensors"
        assert status or written.exists()
        assert not (status and any(folder.glob("*"))), "an error leaves nothing"
        return status, capsys.readouterr().err, load_file(written) if status == 0 else None

    return run


@pytest.fixture
def split(picture):
    """Training images beside which the source has its own splits."""
    held_out = {
        f"{place}/{name}/0.png": picture(900 + n, size=(SIDE, SIDE))
        for n, (place, name) in enumerate((place, name) for place in ("validation", "test") for name in ("cat", "dog"))
    }

    def make(**training):
        return held_out | {f"train/{name}": data for name, data in training.items()}

    return make


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_is_turned_upright_before_it_is_cropped(plant, prepare, picture, split, kind, orientation):
    """28 x 16 pixels, of which the central square is kept, the upper one of an odd number: rotation comes first."""
    data = encoded(Image.open(io.BytesIO(picture(1, size=(SIDE + 13, SIDE)))), kind, orientation)
    status, told, arrays = prepare(plant(split(**{"cat/0.png": data, "dog/0.png": picture(2, size=(SIDE, SIDE))})))
    assert status == 0, told
    upright = UPRIGHT[orientation](stored(data))
    top, left = (upright.shape[0] - SIDE) // 2, (upright.shape[1] - SIDE) // 2
    assert np.array_equal(arrays["images"][0], upright[top : top + SIDE, left : left + SIDE])


def test_an_orientation_that_cannot_be_read_is_refused(plant, prepare, picture, split):
    image = Image.open(io.BytesIO(picture(1)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=b"Exif\0\0no EXIF at all")
    status, told, _ = prepare(plant(split(**{"cat/0.png": buffer.getvalue(), "dog/0.png": picture(2)})))
    assert status == 2 and "train/cat/0.png" in told and "save it again without" in told


def test_equal_training_images_are_told_with_their_names(plant, prepare, picture, split):
    same = {f"cat/{n:02}.png": picture(1, size=(SIDE, SIDE)) for n in range(20)} | {"dog/copy.png": picture(1, size=(SIDE, SIDE))}
    source = plant(split(**same, **{"cat/other.png": picture(2), "dog/other.png": picture(3)}))
    status, told, _ = prepare(source)
    assert status == 0
    assert (
        "21 training images show only 1 picture" in told
        and "train/cat/00.png, train/cat/01.png" in told
        and "and 17 more" in told
    )
    assert "key users" in told and "unit: user" in told


def test_equal_images_are_no_fault_where_there_are_none_or_they_are_one_user_s(tmp_path, plant, prepare, picture, split):
    files = split(**{"cat/0.png": picture(1), "cat/1.png": picture(1), "dog/0.png": picture(3)})
    source, users = plant(files), tmp_path / "users.csv"
    users.write_text("file,user\n" + "".join(f"{name},{'ann' if 'cat' in name else name}\n" for name in files))
    assert "show only" not in prepare(source, users=str(users))[1]
    users.write_text("file,user\n" + "".join(f"{name},{name}\n" for name in files))
    assert "give equal images one user" in prepare(source, users=str(users))[1]
    (source / "train/cat/1.png").write_bytes(picture(4))
    assert "show only" not in prepare(source)[1]


def test_an_image_that_is_equal_to_a_held_out_one_is_trained_on_once(plant, prepare, picture, split):
    files = split(**{"cat/0.png": picture(1), "dog/0.png": picture(3)})
    assert "show only" not in prepare(plant(files | {"test/cat/1.png": picture(1)}))[1]


def test_equal_images_of_no_files_are_named_by_their_place(prepare, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE, 3), np.uint8)
    images[6:] = images[2]
    source = replace(Source.of_arrays(images, np.arange(9) % 2), splits=np.array([*["train"] * 7, "validation", "test"]))
    monkeypatch.setitem(loaders.LOADERS, "image-folder", loaders.Loader(lambda entry: source))
    assert "image 2, image 6" in prepare(Path("nowhere"), validation=0, test=0)[1]


def test_equal_images_are_not_in_what_may_be_published(tmp_path, plant, prepare, picture, split):
    source = plant(split(**{"cat/0.png": picture(1), "cat/1.png": picture(1), "dog/0.png": picture(3)}))
    assert "show only" in prepare(source, "first")[1]
    (source / "train/cat/1.png").write_bytes(picture(4))
    assert "show only" not in prepare(source, "second")[1]
    first, second = (
        {key: value for key, value in yaml.safe_load((tmp_path / out / "dataset.json").read_text()).items() if key != "id"}
        for out in ("first", "second")
    )
    assert first == second


def test_nothing_is_held_out_for_somebody_who_evaluates_nothing(plant, prepare, pool):
    status, told, arrays = prepare(plant(pool), validation=0, test=0)
    assert status == 0, told
    assert set(arrays["split"].tolist()) == {0} and len(arrays["images"]) == len(pool)


@pytest.mark.parametrize("batch", [2, 256])
def test_all_faulty_files_are_told_at_once_and_nothing_is_written(plant, prepare, picture, pool, monkeypatch, batch):
    """Those of later batches, too."""
    monkeypatch.setattr(image_files, "BATCH", batch)
    faulty = {
        "cat/broken.png": b"no image",
        "cat/cut.jpg": picture(kind="JPEG")[:-300],
        "cat/small.png": picture(size=(7, 20)),
        "dog/grey.png": picture(mode="L"),
        "dog/deep/lost.png": picture(),
        "lost.png": picture(),
        "readme.txt": b"hello",
        "bird/0.png": picture(),
    }
    status, told, _ = prepare(plant(pool | faulty))
    assert status == 2
    for name in faulty:
        assert name in told or name == "bird/0.png"
    assert "source/bird = '1 image(s)'" in told
    assert len(told.splitlines()) == len(faulty)


def test_of_many_faulty_files_some_of_each_kind_are_told(plant, prepare, picture, pool):
    grey = {f"cat/grey{n:02}.png": picture(n, mode="L") for n in range(40)}
    status, told, _ = prepare(plant(pool | grey | {"zz.txt": b"", "dog/z.png": b"?"}))
    lines = told.splitlines()
    assert status == 2 and len(lines) == 21 and lines[-1].endswith("and 22 more")
    assert "zz.txt" in told and "dog/z.png" in told and told.count("mode L") == 18


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("I;16", "PNG"), ("RGBA", "PNG")])
def test_a_mode_that_can_be_converted_is_named_with_the_key_that_does_it(plant, prepare, pool, mode, kind):
    pool["cat/odd.png"] = encoded(Image.new(mode, (SIDE, SIDE)), kind)
    status, told, _ = prepare(plant(pool))
    assert status == 2 and f"cat/odd.png = 'mode {mode}'" in told and "set convert: true (" in told
    assert prepare(plant(pool), convert=True)[0] == 0


def test_sixteen_bits_are_scaled_and_rounded_not_clipped(plant, prepare, split):
    levels = np.append(np.random.default_rng(0).integers(0, 65536, 254), [0, 65535]).astype(np.uint16).reshape(SIDE, SIDE)
    files = split(**{"cat/0.png": encoded(Image.fromarray(levels)), "dog/0.png": encoded(Image.new("L", (SIDE, SIDE)))})
    _, told, arrays = prepare(plant(files), channels=1, convert=True)
    assert arrays is not None, told
    assert np.array_equal(arrays["images"][0, ..., 0], np.round(levels * (255 / 65535)).astype(np.uint8))


def test_transparent_pixels_become_white(plant, prepare, split):
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), np.uint8)
    files = split(**{"cat/0.png": encoded(Image.fromarray(pixels)), "dog/0.png": encoded(Image.new("RGB", (SIDE, SIDE)))})
    _, told, arrays = prepare(plant(files), convert=True)
    assert arrays is not None, told
    assert np.array_equal(arrays["images"][0], on_white(pixels))


def linked(plant, picture, split, where):
    """A source with a link: the class folder, a folder in a folder, a file; in class folders or named by a CSV."""
    source = plant(split(**{"cat/0.png": picture(0), "dog/0.png": picture(1)}))
    train = source / "train"
    elsewhere = plant({"more/a.png": picture(2), "file.png": picture(3)}, "elsewhere")
    if where == "class folder":
        (train / "dog/0.png").unlink()
        (train / "dog").rmdir()
        (train / "dog").symlink_to(elsewhere / "more")
    elif where == "file":
        (train / "dog/1.png").symlink_to(elsewhere / "file.png")
    else:
        (train / "sub").mkdir()
        (train / "sub/further").symlink_to(elsewhere / "more")
    return source


@pytest.mark.parametrize(("where", "images"), [("class folder", 2 + 4), ("file", 3 + 4)])
def test_links_are_followed_in_class_folders(plant, prepare, picture, split, where, images):
    status, told, arrays = prepare(linked(plant, picture, split, where))
    assert status == 0, told
    assert len(arrays["images"]) == images


@pytest.mark.parametrize(
    ("where", "name"), [("class folder", "dog/a.png"), ("file", "dog/1.png"), ("sub-folder", "sub/further/a.png")]
)
def test_links_are_followed_for_a_table_of_labels(tmp_path, plant, prepare, picture, split, where, name):
    source = linked(plant, picture, split, where)
    rows = [f"{place}/{label}/0.png,{label},{place}" for place in ("validation", "test") for label in ("cat", "dog")]
    rows += ["train/cat/0.png,cat,train", f"train/{name},dog,train"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    status, told, arrays = prepare(source, labels=str(tmp_path / "labels.csv"))
    assert status == 0, told
    assert len(arrays["images"]) == len(rows)


def test_a_linked_folder_in_the_wrong_place_is_told_like_any_other(plant, prepare, picture, split):
    status, told, _ = prepare(linked(plant, picture, split, "sub-folder"))
    assert status == 2 and "sub/further/a.png" in told


@pytest.mark.parametrize(
    ("target", "named"), [("nowhere.png", "broken link"), ("..", "link in a circle"), ("1.png", "broken link")]
)
def test_links_that_lead_nowhere_or_in_a_circle_are_named(plant, prepare, pool, target, named):
    source = plant(pool)
    (source / "dog/1.png").symlink_to(target)
    status, told, _ = prepare(source)
    assert status == 2 and f"dog/1.png = '{named}'" in told


def test_a_pinned_folder_is_digested_with_what_links_lead_to(plant, picture, split):
    source = linked(plant, picture, split, "class folder")
    before = sha256(source)
    (source / "train/dog/a.png").write_bytes(b"another")
    assert sha256(source) != before


def test_a_link_in_a_zip_is_refused(tmp_path, prepare, pool):
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        for name, data in pool.items():
            archive.writestr(name, data)
        link = zipfile.ZipInfo("dog/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../cat/0.png")
    status, told, _ = prepare(tmp_path / "source.zip")
    assert status == 2 and "dog/link.png = 'a link'" in told and "zip without -y" in told


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
@pytest.mark.parametrize("where", ["folder", "table", "zip"])
def test_names_in_other_code_points_are_equal(tmp_path, plant, prepare, picture, where, form, other):
    """A class and a file with an accent, written one way on the disk and another way in the entry or the CSVs."""
    on_disk, written = (unicodedata.normalize(to, "café") for to in (form, other))
    places = ("train", "validation", "test")
    files = {f"{place}/{name}/{name}.png": picture(1) for place in places for name in (on_disk, "dog")}
    rows = [f"{place}/{name}/{name}.png,{name},{place},ann" for place in places for name in (written, "dog")]
    source, keys = plant(files), {"users": tmp_path / "table.csv"}
    keys["users"].write_text("\n".join(["file,label,split,user", *rows]), encoding="utf-8")
    if where == "table":
        keys["labels"] = keys["users"]
    elif where == "zip":
        source = tmp_path / "source.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    status, told, arrays = prepare(
        source, classes=(written, "dog"), validation=0, test=0, **{key: str(path) for key, path in keys.items()}
    )
    assert status == 0, told
    assert len(arrays["images"]) == len(files)


def test_a_zip_whose_names_have_no_mark_of_their_encoding_is_read_as_utf_8(tmp_path, prepare, picture):
    """As macOS packs them; one byte of the flags in both headers says which encoding it is."""
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        archive.writestr("café/0.png", picture(1))
        archive.writestr("dog/0.png", picture(2))
    data = bytearray((tmp_path / "source.zip").read_bytes())
    for head, place in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        data[data.index(head) + place] &= ~8
    (tmp_path / "source.zip").write_bytes(data)
    status, told, _ = prepare(tmp_path / "source.zip", classes=("café", "dog"), validation=0, test=0)
    assert status == 0, told


def test_two_files_that_differ_in_code_points_alone_are_not_mistaken_for_one(tmp_path, plant, prepare, picture):
    composed, apart = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    source = plant({composed: picture(1), apart: picture(2), "dog.png": picture(3)})
    (tmp_path / "labels.csv").write_text(f"file,label\n{composed},cat\ndog.png,dog\n")
    status, told, _ = prepare(source, labels=str(tmp_path / "labels.csv"), validation=0, test=0)
    assert status == 2 and "2 files" in told and "rename one" in told


FORMATS = [("x.parquet", "Parquet"), ("shard-000.tar", "WebDataset"), ("x.webp", "WebP"), ("x.tiff", "TIFF"), ("x.gif", "GIF")]
FORMATS += [("x.bmp", "BMP"), ("x.HEIC", "HEIC"), ("x.avif", "AVIF")]


@pytest.mark.parametrize(("name", "told_as"), FORMATS)
@pytest.mark.parametrize("where", ["in a class folder", "the source itself"])
def test_formats_that_are_not_read_are_named_with_what_to_do(plant, prepare, pool, name, told_as, where):
    inside = where == "in a class folder"
    source = plant(pool | {f"cat/{name}" if inside else name: b"whatever"})
    status, told, _ = prepare(source if inside else source / name)
    assert status == 2 and name in told and told_as in told and "is not read: " in told


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "GIF", "BMP", "AVIF"])
def test_a_format_under_another_s_name_is_known_by_its_bytes(plant, prepare, pool, kind):
    status, told, _ = prepare(plant(pool | {"cat/x.jpg": encoded(Image.new("RGB", (SIDE, SIDE)), kind)}))
    assert status == 2 and f"cat/x.jpg = 'a {'WebP' if kind == 'WEBP' else kind} file, whatever its name'" in told


def test_an_animated_png_is_refused(plant, prepare, pool):
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    status, told, _ = prepare(plant(pool | {"cat/x.png": buffer.getvalue()}))
    assert status == 2 and "cat/x.png = '2 frames'" in told


PUBLISHED = {
    "cifar10": lambda folder: (folder / "cifar-10-batches-py").mkdir() or "cifar-10-batches-py",
    "octmnist": lambda folder: (folder / "octmnist_128.npz").write_bytes(b"a part") and "octmnist_128.npz",
    "celeba": lambda folder: (folder / "img_align_celeba").mkdir() or "",
    "camelyon17": lambda folder: (folder / "patches").mkdir() or "",
}


@pytest.mark.parametrize("loader", PUBLISHED)
@pytest.mark.parametrize("pinned", [False, True])
def test_a_part_of_a_published_dataset_is_pointed_to_class_folders(tmp_path, prepare, loader, pinned):
    (tmp_path / "published").mkdir()
    source = tmp_path / "published" / PUBLISHED[loader](tmp_path / "published")
    digest = {"sha256": "0" * 64} if pinned else {}
    status, told, _ = prepare(source, loader=loader, **digest)
    assert status == 2 and "loader: image-folder" in told and "Your own images" in told
