import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpsapf.datasets import decoding, image_files
from dpsapf.datasets.decoding import decode
from dpsapf.datasets.image_folder import SPLIT_FOLDERS, arrange, image_folder
from dpsapf.datasets.image_tables import read_labels, read_users
from dpsapf.datasets.images import BATCH
from dpsapf.datasets.prepare import checked_source
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from tests.all_images import all_images


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def checked(entry):
    """Find an entry's images, as prepare-dataset does: all that is wrong is one error."""
    return checked_source(entry, threads=2)


def same(left, right):
    pairs = [(left.labels, right.labels), (left.splits, right.splits), (all_images(left), all_images(right, threads=3))]
    return all(np.array_equal(*pair) for pair in pairs)


def test_labels_follow_the_entry_not_the_alphabet(plant, pool, make_entry):
    source = str(plant(pool))
    assert image_folder(make_entry(source=source)).labels.tolist() == [0] * 8 + [1] * 6
    swapped = image_folder(make_entry(source=source, classes=("dog", "cat")))
    assert swapped.labels.tolist() == [1] * 8 + [0] * 6


def test_pixels_are_those_of_the_file(plant, pool, make_entry):
    source = plant(pool)
    images = all_images(image_folder(make_entry(source=str(source), resolution=20)))
    assert np.array_equal(images[3], np.asarray(Image.open(source / "cat/3.png")))
    assert np.array_equal(images[9], np.asarray(Image.open(source / "dog/1.jpg")))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("prefix", ["", "train/", "wrapper/", "wrapper/train/"])
def test_folder_and_zip_give_the_same(tmp_path, plant, picture, make_entry, mode, prefix):
    files = {f"{prefix}{name}/{n}.png": picture(n, mode) for name in ("cat", "dog") for n in range(3)}
    files["__MACOSX/cat/._0.png"] = files[f"{prefix}cat/.DS_Store"] = b"hidden"
    channels = {"L": 1, "RGB": 3}[mode]
    folder = image_folder(make_entry(source=str(plant(files)), channels=channels))
    archive = image_folder(make_entry(source=str(zipped(tmp_path / "source.zip", files)), channels=channels))
    assert same(folder, archive)
    assert all_images(folder).shape == (6, 16, 16, channels)


def test_order_in_the_zip_does_not_matter(tmp_path, pool, make_entry):
    forward = zipped(tmp_path / "a.zip", pool)
    backward = zipped(tmp_path / "b.zip", dict(reversed(pool.items())))
    assert same(image_folder(make_entry(source=str(forward))), image_folder(make_entry(source=str(backward))))


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_split_folders(plant, picture, make_entry, validation):
    sizes = {"train": 4, validation: 2, "test": 3}
    files = {f"{s}/{c}/{n}.png": picture(n) for s, size in sizes.items() for c in ("cat", "dog") for n in range(size)}
    source = image_folder(make_entry(source=str(plant(files))))
    assert source.splits.tolist() == ["train"] * 8 + ["test"] * 6 + ["validation"] * 4
    for split, size in sizes.items():
        name = SPLIT_FOLDERS[split]
        assert source.labels[source.splits == name].tolist() == [0] * size + [1] * size
        shown = all_images(source)[source.splits == name]
        expected = [decode(picture(n), "", make_entry()) for n in range(size)]
        assert np.array_equal(shown, expected + expected)


@pytest.mark.parametrize("count", [BATCH, BATCH + 1])
def test_threads_change_no_image_and_no_order(plant, picture, make_entry, count):
    """The last batch is full, or has one image."""
    files = {f"{('cat', 'dog')[n % 2]}/{n:03}.png": picture(n) for n in range(count)}
    source = image_folder(make_entry(source=str(plant(files))))
    assert [len(batch) for batch in source.decoded(4)] == [BATCH, *[1] * (count - BATCH)]
    expected = [decode(files[name], name, make_entry()) for name in sorted(files)]
    assert np.array_equal(all_images(source, 4), expected) and np.array_equal(all_images(source, 1), expected)


def test_classes_may_be_called_like_splits(make_entry):
    found = arrange(["train/1.png", "test/2.png"], make_entry(classes=("train", "test")))
    assert not found.mistakes and found.plan == {"train": [("test/2.png", 1), ("train/1.png", 0)]}


def test_the_central_square_is_kept(picture, make_entry):
    wide = np.asarray(decode(picture(size=(40, 16)), "wide.png", make_entry()))
    direct = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 40, 4), dtype=np.uint8)[:, 12:28, :3]))
    assert np.array_equal(wide, direct)


@pytest.mark.parametrize("size", [(40, 17), (41, 17), (17, 40), (17, 41)])
def test_what_is_cut_off_does_not_colour_the_rest(picture, make_entry, size):
    """The filter sees the square alone, of whole pixels."""
    data, left, top = picture(size=size), max(0, size[0] - 17) // 2, max(0, size[1] - 17) // 2
    square = Image.open(io.BytesIO(data)).crop((left, top, left + 17, top + 17))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(decode(data, "x.png", make_entry(resolution=32)), expected)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"cat/x.gif": b"GIF89a"}, r"cat/x\.gif = 'GIF': is not read: convert it to PNG"),
        ({"readme.txt": b"hello"}, r"readme\.txt.*CLASS/FILE"),
        ({"cat/deep/x.png": b""}, r"cat/deep/x\.png.*CLASS/FILE"),
        (
            {"bird/x.png": b""},
            r"source/bird = '1 image\(s\)': this folder is none of the entry's classes: its name must be one of cat, dog",
        ),
        ({"train/cat/x.png": b""}, r"train/cat/x\.png = 'misplaced': must be CLASS/FILE"),
    ],
)
def test_a_file_that_does_not_belong_is_named(plant, pool, make_entry, extra, named):
    with pytest.raises(UserError, match=named):
        checked(make_entry(source=str(plant(pool | extra))))


def test_an_undecodable_file_is_named(plant, pool, make_entry):
    source = image_folder(make_entry(source=str(plant(pool | {"cat/x.png": b"no image"}))))
    with pytest.raises(UserError, match=r"cat/x\.png = 'undecodable"):
        all_images(source, threads=2)


def test_a_stray_file_beside_split_folders_is_the_one_named(make_entry):
    files = ["train/cat/1.png", "train/dog/1.png", "zz.txt", "extra/cat/1.png"]
    found = arrange(files, make_entry())
    assert [mistake.key for mistake in found.mistakes] == ["nowhere/extra/cat/1.png", "nowhere/zz.txt"]
    assert "only split folders" in str(found.mistakes[0]) and found.plan == {"train": [(files[0], 0), (files[1], 1)]}


@pytest.mark.parametrize("cut", [10, 60, -200])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_named(picture, make_entry, kind, cut):
    with pytest.raises(UserError, match=r"x\.png = 'undecodable"):
        decode(picture(kind=kind)[:cut], "x.png", make_entry())


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG")]
)
def test_another_mode_among_rgb_is_named(plant, pool, picture, make_entry, mode, kind):
    pool["dog/odd.png"] = picture(5, mode, kind=kind)
    with pytest.raises(UserError, match=rf"dog/odd\.png = 'mode {mode}'.*mode RGB.*set convert: true"):
        all_images(image_folder(make_entry(source=str(plant(pool)))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_modes_are_converted_if_that_is_asked_for(picture, make_entry, mode, channels):
    entry = make_entry(resolution=20, channels=channels, convert=True)
    original = Image.open(io.BytesIO(picture(3, mode)))
    assert original.mode == mode
    expected = np.asarray(original.convert("RGB" if channels == 3 else "L")).reshape(20, 20, channels)
    assert np.array_equal(decode(picture(3, mode), "x.png", entry), expected)


def test_rgb_among_grey_is_named(plant, picture, make_entry):
    files = {"cat/0.png": picture(0, "L"), "cat/1.png": picture(1, "RGB"), "dog/0.png": picture(2, "L")}
    with pytest.raises(UserError, match=r"cat/1\.png = 'mode RGB'.*mode L for channels = 1"):
        all_images(image_folder(make_entry(source=str(plant(files)), channels=1)))


def test_small_and_large_images_are_refused(picture, make_entry, monkeypatch):
    decode(picture(size=(8, 30)), "x.png", make_entry())
    with pytest.raises(UserError, match=r"7 x 30.*8 to"):
        decode(picture(size=(7, 30)), "x.png", make_entry())
    monkeypatch.setattr(decoding, "MAX_SIDE", 25)
    with pytest.raises(UserError, match=r"8 x 30.*to 25 pixels"):
        decode(picture(size=(8, 30)), "x.png", make_entry())


def test_a_huge_image_is_refused_before_it_is_decoded(picture, make_entry):
    header = bytearray(picture())
    header[16:24] = (8193).to_bytes(4, "big") + (20).to_bytes(4, "big")
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(UserError, match="8193 x 20"):
        decode(bytes(header), "x.png", make_entry())


@pytest.mark.parametrize("name", ["../cat/x.png", "cat/../../x.png", "/cat/x.png", "cat\\..\\x.png", "C:/cat/x.png"])
def test_zip_slip_is_refused(tmp_path, pool, picture, make_entry, name):
    source = zipped(tmp_path / "source.zip", {name: picture()} | pool)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="leaves its folder"):
        checked(make_entry(source=str(source)))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_bomb_is_refused_unread(tmp_path, pool, make_entry, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 100_000)
    source = zipped(tmp_path / "source.zip", pool | {"dog/bomb.png": bytes(1_000_000)})
    assert source.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.png = '1000000 bytes unpacked'"):
        checked(make_entry(source=str(source)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip_is_refused(tmp_path, pool, make_entry):
    source = zipped(tmp_path / "source.zip", pool)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("cat/0.png", b"another")
    with pytest.raises(UserError, match=r"cat/0\.png = 'twice"):
        checked(make_entry(source=str(source)))


def test_a_damaged_zip_entry_is_named(tmp_path, pool, make_entry):
    source = zipped(tmp_path / "source.zip", pool)
    data = bytearray(source.read_bytes())
    data[60:90] = bytes(30)
    source.write_bytes(data)
    with pytest.raises(UserError, match=r"cat/0\.png = .unreadable \(.*: replace or remove it"):
        all_images(image_folder(make_entry(source=str(source))))


def test_a_file_that_is_no_zip_is_refused(tmp_path, make_entry):
    (tmp_path / "source.zip").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"source = .*readable \.zip"):
        checked(make_entry(source=str(tmp_path / "source.zip")))


def test_a_missing_source_is_named(make_entry):
    with pytest.raises(UserError, match="source = 'nowhere': does not exist"):
        checked(make_entry())


@pytest.mark.parametrize("kept", ["cat", "nothing"])
def test_a_class_without_images_is_named(plant, pool, make_entry, kept):
    source = plant({name: data for name, data in pool.items() if name.startswith(kept)} | {".hidden": b""})
    (source / "dog").mkdir()
    with pytest.raises(UserError, match=r"no train images in class.*dog"):
        checked(make_entry(source=str(source)))


def test_a_class_missing_from_one_split_is_named(make_entry):
    found = arrange(["train/cat/1.png", "train/dog/1.png", "test/cat/1.png"], make_entry())
    assert [mistake.remedy for mistake in found.mistakes] == ["no test images in class(es) dog"]
    found = arrange(["test/cat/1.png", "test/dog/1.png"], make_entry())
    assert [mistake.remedy for mistake in found.mistakes] == ["no train images in class(es) cat, dog"]


def test_digests_of_folder_and_zip(tmp_path, plant, pool, make_entry):
    folder, archive = plant(pool), zipped(tmp_path / "source.zip", pool)
    image_folder(make_entry(source=str(archive), sha256=hashlib.sha256(archive.read_bytes()).hexdigest()))
    pinned = make_entry(source=str(folder), sha256=sha256(folder))
    image_folder(pinned)
    (folder / "cat/0.png").write_bytes((folder / "cat/1.png").read_bytes())
    with pytest.raises(UserError, match="sha256"):
        checked(pinned)


def listed(tmp_path, rows, columns="file,user"):
    path = tmp_path / "users.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def test_users_follow_their_images(tmp_path, plant, pool, make_entry):
    rows = [f"{name},patient {place % 3}" for place, name in enumerate(sorted(pool, reverse=True))]
    entry = make_entry(source=str(plant(pool)), users=str(listed(tmp_path, [*rows, "elsewhere.png,nobody"])))
    part = image_folder(entry)
    assert part.users.tolist() == [dict(row.split(",") for row in rows)[name] for name in sorted(pool)]


def test_users_stay_as_they_are_written(tmp_path):
    assert read_users(listed(tmp_path, ["a.png,007", "b.png,NA"]), ["a.png", "b.png"]) == {"a.png": "007", "b.png": "NA"}


@pytest.mark.parametrize(
    ("rows", "columns", "named"),
    [
        (["cat/0.png,a"], "file,user", r"names no user for cat/1\.png \(1 image"),
        (["cat/0.png,a", "cat/1.png,"], "file,user", r"names no user for cat/1\.png"),
        (["cat/0.png,a", "cat/0.png,b"], "file,user", r"names cat/0\.png more than once"),
        (["cat/0.png,a"], "file,patient", r"lacks column\(s\) user; it has file, patient"),
        (['cat/0.png,"a'], "file,user", "readable CSV"),
    ],
)
def test_a_bad_list_of_users_is_refused(tmp_path, rows, columns, named):
    with pytest.raises(UserError, match=named):
        read_users(listed(tmp_path, rows, columns), ["cat/0.png", "cat/1.png"])


def test_a_missing_list_of_users_is_named(tmp_path):
    with pytest.raises(UserError, match=r"users = .*none\.csv.*readable CSV"):
        read_users(tmp_path / "none.csv", [])


def labelled(tmp_path, rows, columns="file,label"):
    path = tmp_path / "labels.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return str(path)


FILES = ("b/2.png", "1.png", "a/x/3.jpg", "4.png")


@pytest.fixture
def scattered(plant, picture):
    """Files in any folders, and some that no table names."""
    pictures = {name: picture(place, kind="JPEG" if name.endswith("jpg") else "PNG") for place, name in enumerate(FILES)}
    return str(plant(pictures | {"notes.txt": b"not an image", "unnamed.png": b"?"}))


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_of_labels(tmp_path, scattered, picture, make_entry, packed):
    labels = labelled(
        tmp_path, [f"{name},{label},x" for name, label in zip(FILES, ("dog", "cat", "cat", "dog"), strict=True)], "file,label,n"
    )
    if packed:
        files = {p.relative_to(scattered).as_posix(): p.read_bytes() for p in Path(scattered).rglob("*") if p.is_file()}
        scattered = str(zipped(tmp_path / "source.zip", files))
    source = image_folder(make_entry(source=scattered, labels=labels))
    assert source.labels.tolist() == [0, 1, 0, 1] and source.splits.tolist() == ["train"] * 4, "in the order of the names"
    order = [1, 3, 2, 0]
    expected = [decode(picture(n, kind="JPEG" if n == 2 else "PNG"), "", make_entry()) for n in order]
    assert np.array_equal(all_images(source), expected)


def test_a_table_may_tell_splits_and_users(tmp_path, scattered, make_entry):
    rows = ["b/2.png,dog,train,ann", "1.png,cat,train,bob", "a/x/3.jpg,cat,val,ann", "4.png,dog,validation,bob"]
    table = labelled(tmp_path, rows, "file,label,split,user")
    source = image_folder(make_entry(source=scattered, labels=table, users=table))
    assert source.splits.tolist() == ["train", "train", "validation", "validation"]
    assert source.labels.tolist() == [0, 1, 1, 0] and source.users.tolist() == ["bob", "ann", "bob", "ann"]


@pytest.mark.parametrize(
    ("rows", "columns", "named"),
    [
        (
            ["1.png,cat", "4.png,wolf"],
            "file,label",
            r"labels\.csv: 4\.png = 'wolf': the label must be one of cat, dog",
        ),
        (["1.png,cat", "5.png,dog"], "file,label", r"labels\.csv: 5\.png = 'no such file'"),
        (["1.png,cat", "../x.png,dog"], "file,label", r"\.\./x\.png = 'no such file'"),
        (["1.png,cat", "notes.txt,dog"], "file,label", r"notes\.txt = 'neither PNG nor JPEG': .*PNG or JPEG"),
        (["1.png,cat,train", "4.png,dog,dev"], "file,label,split", r"4\.png = 'dev': the split must be one of train"),
        (["1.png,cat"], "file,label", r"no train images in class\(es\) dog"),
        (["1.png,cat", "1.png,dog"], "file,label", r"labels = .*names 1\.png more than once"),
        (["1.png,cat"], "file,class", r"labels = .*lacks column\(s\) label; it has file, class"),
    ],
)
def test_a_bad_table_of_labels_is_told(tmp_path, scattered, make_entry, rows, columns, named):
    with pytest.raises(UserError, match=named) as caught:
        checked(make_entry(source=scattered, labels=labelled(tmp_path, rows, columns), validation=0, test=0))
    consequence = [line for line in str(caught.value).splitlines() if "no train images in class(es) dog" in line]
    assert len(str(caught.value).splitlines()) - len(consequence) <= 1


def test_a_missing_table_of_labels_is_named(tmp_path):
    with pytest.raises(UserError, match=r"labels = .*none\.csv.*readable CSV"):
        read_labels(tmp_path / "none.csv")
