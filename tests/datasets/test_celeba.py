import io

import numpy as np
import pytest
from PIL import Image

from dpsapf.datasets import celeba as module
from dpsapf.datasets.celeba import celeba, read_attribute, read_partition
from dpsapf.support.errors import UserError
from tests.all_images import all_images
from tests.published_files import (
    CELEBA_MALE,
    CELEBA_SPLITS,
    celeba_attributes,
    celeba_folder,
    celeba_image,
    celeba_partition,
    md5,
)

NAMES = {0: "train", 1: "validation", 2: "test"}


@pytest.fixture
def make(tmp_path, make_entry, monkeypatch):
    """An entry for a folder whose files are the published ones, as far as digests and counts tell."""

    def build(*, unpacked=False, male=CELEBA_MALE, splits=CELEBA_SPLITS, **changes):
        folder = tmp_path / "celeba"
        monkeypatch.setattr(module, "MD5", celeba_folder(folder, unpacked=unpacked, male=male, splits=splits))
        monkeypatch.setattr(module, "COUNTS", {name: splits.count(code) for code, name in NAMES.items()})
        values = {"loader": "celeba", "source": str(folder), "classes": ("female", "male"), "prompts": ("f", "m")}
        return make_entry(**values | {"resolution": 256, "validation": 0, "test": 0} | changes), folder

    return build


def rewrite(folder, name, text, monkeypatch):
    """Change a file, and the digest with it."""
    (folder / name).write_text(text)
    monkeypatch.setitem(module.MD5, name, md5(text.encode()))


def expected(place, side):
    """Central 178 x 178 of a file, then Lanczos."""
    image = Image.open(io.BytesIO(celeba_image(place))).crop((0, 20, 178, 198))
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def test_the_official_numbers():
    assert module.COUNTS == {"train": 162_770, "validation": 19_867, "test": 19_962}
    assert sum(module.COUNTS.values()) == 202_599 and len(module.MD5) == 3


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("side", [64, 178, 256])
def test_every_pixel_label_and_split(make, unpacked, side):
    entry, _ = make(unpacked=unpacked, resolution=side)
    source = celeba(entry)
    assert source.labels.tolist() == [int(sex == 1) for sex in CELEBA_MALE] and source.users is None
    assert source.splits.tolist() == [NAMES[split] for split in CELEBA_SPLITS]
    assert np.array_equal(all_images(source, 2), [expected(place, side) for place in range(8)])


def test_the_reference_s_number_of_training_images(make):
    entry, _ = make(train=3)
    source = celeba(entry)
    kept = [place for place, split in enumerate(CELEBA_SPLITS) if split != 1]
    assert [int((source.splits == name).sum()) for name in ("train", "validation", "test")] == [3, 1, 2]
    assert np.array_equal(all_images(source), [expected(place, 256) for place in kept])
    assert source.labels.tolist() == [int(CELEBA_MALE[place] == 1) for place in kept]


@pytest.mark.parametrize("name", ["img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"])
def test_another_digest_is_told(make, name):
    entry, folder = make()
    with (folder / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=rf"{name} = 'md5"):
        celeba(entry)


@pytest.mark.parametrize("name", ["img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"])
def test_a_missing_file_is_named(make, name):
    entry, folder = make()
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"source = .*must have {name}"):
        celeba(entry)


def test_a_truncated_archive_of_the_right_digest_is_told(make, monkeypatch):
    entry, folder = make()
    path = folder / "img_align_celeba.zip"
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setitem(module.MD5, path.name, md5(path.read_bytes()))
    with pytest.raises(UserError, match=r"must be a folder or a readable \.zip"):
        celeba(entry)


def test_an_image_without_a_partition_line_is_named(make, monkeypatch):
    entry, folder = make()
    rewrite(folder, "list_eval_partition.txt", celeba_partition().replace("000003.jpg 1\n", ""), monkeypatch)
    with pytest.raises(UserError, match=r"list_eval_partition\.txt = 'no line for 000003\.jpg'"):
        celeba(entry)


def test_a_missing_image_is_named(make):
    entry, folder = make(unpacked=True)
    (folder / "img_align_celeba" / "000005.jpg").unlink()
    with pytest.raises(UserError, match=r"img_align_celeba = 'no 000005\.jpg': lacks 1 image"):
        celeba(entry)


def test_other_counts_are_told(make, monkeypatch):
    entry, _ = make()
    monkeypatch.setattr(module, "COUNTS", {"train": 4, "validation": 3, "test": 2})
    with pytest.raises(UserError, match="has 2 validation images and must have 3"):
        celeba(entry)


def test_attributes_stand_in_columns():
    assert read_attribute(celeba_attributes(), "x") == {f"{n + 1:06}.jpg": int(m == 1) for n, m in enumerate(CELEBA_MALE)}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("Male", "Mail", "x = '5_o_Clock_Shadow.*line 2 must name the attribute Male"),
        ("8\n", "9\n", "x = '8 images': line 1 says 9"),
        ("000004.jpg -1", "000004.jpg", "x = '000004.jpg.*must be a name and -1 or 1"),
        ("000004.jpg -1  1  1", "000004.jpg -1  1  0", "x = '000004.jpg -1  1  0"),
        ("000004.jpg -1  1  1  1\n", "", "x = '7 images': line 1 says 8"),
    ],
)
def test_other_attributes_are_told_in_one_line(old, new, named):
    assert old in celeba_attributes()
    with pytest.raises(UserError, match=named) as caught:
        read_attribute(celeba_attributes().replace(old, new, 1), "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "8"])
def test_a_list_without_a_header_is_told(text):
    with pytest.raises(UserError, match="line 2 must name the attribute Male"):
        read_attribute(text, "x")


@pytest.mark.parametrize("line", ["000001.jpg", "000001.jpg 3", "000001.jpg 0 1", "image_id partition"])
def test_other_partition_lines_are_told(line):
    with pytest.raises(UserError, match=f"x = '{line}': must be a name and 0"):
        read_partition(f"000002.jpg 0\n{line}\n", "x")
