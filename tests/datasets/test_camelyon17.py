import numpy as np
import pandas as pd
import pytest

from dpsapf.datasets import camelyon17 as module
from dpsapf.datasets.camelyon17 import camelyon17, official_splits, read_metadata
from dpsapf.support.errors import UserError
from tests.all_images import all_images
from tests.published_files import CAMELYON_ROWS, camelyon_folder, camelyon_path, camelyon_pixels, png

USED = [0, 2, 3, 4, 5, 6, 7, 8]  # row 1 is in-distribution validation
SPLITS = ["train", "validation", "validation", "test", "test", "train", "train", "train"]


@pytest.fixture
def make(tmp_path, make_entry, monkeypatch):
    """An entry for a folder that is the published one, as far as counts tell."""
    monkeypatch.setattr(module, "COUNTS", {"train": 4, "in-distribution validation": 1, "validation": 2, "test": 2})

    def build(rows=CAMELYON_ROWS, **changes):
        folder = camelyon_folder(tmp_path / "camelyon17_v1.0", rows)
        values = {"loader": "camelyon17", "source": str(folder), "classes": ("normal", "tumour"), "prompts": ("n", "t")}
        return make_entry(**values | {"resolution": 96, "validation": 0, "test": 0} | changes), folder

    return build


def test_the_official_numbers():
    assert module.COUNTS == {"train": 302_436, "in-distribution validation": 33_560, "validation": 34_904, "test": 85_054}
    assert sum(module.COUNTS.values()) == 455_954, "WILDS' number of patches"


def test_every_pixel_label_and_split(make):
    entry, _ = make()
    source = camelyon17(entry)
    assert source.splits.tolist() == SPLITS
    assert source.labels.tolist() == [CAMELYON_ROWS[place][4] for place in USED] and source.users is None
    assert np.array_equal(all_images(source, 2), [camelyon_pixels(place)[..., :3] for place in USED]), "RGBA without its A"


@pytest.mark.parametrize(("users", "column"), [("patient", 0), ("slide", 5)])
def test_users_are_patients_or_slides(make, users, column):
    entry, _ = make(users=users)
    assert camelyon17(entry).users.tolist() == [str(CAMELYON_ROWS[place][column]) for place in USED]


def test_other_users_are_refused(make):
    entry, _ = make(users="patients")
    with pytest.raises(UserError, match="users = 'patients': must be one of patient, slide; did you mean patient?"):
        camelyon17(entry)


def wilds_splits(table):
    """The rule of WILDS' documentation, patch by patch."""
    for centre, split in zip(table["center"], table["split"], strict=True):
        if centre == 1:
            yield "validation"
        elif centre == 2:
            yield "test"
        else:
            yield "in-distribution validation" if split == 1 else "train"


def test_no_image_of_a_held_out_hospital_is_a_training_image():
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"center": generator.integers(0, 5, 500), "split": (generator.random(500) < 0.1).astype(int)})
    found = official_splits(table)
    assert found.tolist() == list(wilds_splits(table))
    assert not set(table["center"][found == "train"]) & {1, 2} and (table["split"][found == "train"] == 0).all()
    assert ((table["split"] == 0) & (found != "train")).any(), "the column alone would have let some in"


def test_the_reference_s_number_of_training_images(make):
    entry, _ = make(train=3)
    source = camelyon17(entry)
    assert [int((source.splits == name).sum()) for name in ("train", "validation", "test")] == [3, 1, 2]
    kept = [place for place, split in zip(USED, SPLITS, strict=True) if split != "validation"]
    assert np.array_equal(all_images(source), [camelyon_pixels(place)[..., :3] for place in kept])


def test_an_archive_is_refused_with_the_reason(make_entry, plant):
    source = plant({"camelyon17_v1.0.tar.gz": b"..."}) / "camelyon17_v1.0.tar.gz"
    with pytest.raises(UserError, match=r"a \.tar\.gz cannot be read in any order, unpack it first"):
        camelyon17(make_entry(source=str(source)))


def test_another_folder_is_refused(make):
    entry, folder = make()
    (folder / "RELEASE_v1.0.txt").unlink()
    with pytest.raises(UserError, match=r"lacks RELEASE_v1\.0\.txt"):
        camelyon17(entry)


@pytest.mark.parametrize("place", [0, 3])
def test_a_missing_image_is_named(make, place):
    entry, folder = make()
    (folder / camelyon_path(*CAMELYON_ROWS[place])).unlink()
    with pytest.raises(UserError, match=rf"no {camelyon_path(*CAMELYON_ROWS[place])}': lacks 1 image"):
        camelyon17(entry)


def test_an_image_that_is_not_used_may_be_missing(make):
    entry, folder = make()
    (folder / camelyon_path(*CAMELYON_ROWS[1])).unlink()
    assert len(all_images(camelyon17(entry))) == 8


def test_a_truncated_image_is_named(make):
    entry, folder = make()
    (folder / camelyon_path(*CAMELYON_ROWS[4])).write_bytes(png(camelyon_pixels(4))[:5000])
    with pytest.raises(UserError, match=r"patient_042_node_3_x_320_y_32\.png = 'undecodable"):
        all_images(camelyon17(entry))


def test_other_counts_are_told(make):
    entry, _ = make([row for row in CAMELYON_ROWS if row[6] != 2])
    with pytest.raises(UserError, match="has 0 test images and must have 2"):
        camelyon17(entry)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        (6, 5, "row 3 = 'center 5': must be 0, 1, 2, 3, 4"),
        (6, "", "row 3 = 'center '"),
        (4, 2, "row 3 = 'tumor 2': must be 0, 1"),
        (7, 3, "row 3 = 'split 3': must be 0, 1"),
        (2, "1.5", r"row 3 = 'x_coord 1\.5': must be an integer"),
        (1, "../..", r"row 3 = 'node \.\./\.\.': must be an integer"),
    ],
)
def test_a_wrong_value_is_told_with_its_row(make, column, value, named):
    rows = [list(row) for row in CAMELYON_ROWS]
    rows[3][column] = value
    entry, folder = make(CAMELYON_ROWS)
    lines = [f"{place},{','.join(map(str, row))}" for place, row in enumerate(rows)]
    header = (folder / "metadata.csv").read_text().splitlines()[0]
    (folder / "metadata.csv").write_text("\n".join([header, *lines]))
    with pytest.raises(UserError, match=named) as caught:
        camelyon17(entry)
    assert "\n" not in str(caught.value)


def test_metadata_without_a_column_or_unreadable_is_told(tmp_path):
    (tmp_path / "metadata.csv").write_text(",patient,node,x_coord,y_coord,tumor,slide,split\n0,004,4,1,1,0,0,0\n")
    with pytest.raises(UserError, match="no column center"):
        read_metadata(tmp_path / "metadata.csv")
    with pytest.raises(UserError, match=r"must be WILDS' metadata\.csv"):
        read_metadata(tmp_path / "nowhere.csv")


def test_patients_keep_their_zeros(make):
    _, folder = make()
    assert read_metadata(folder / "metadata.csv")["patient"].tolist() == [row[0] for row in CAMELYON_ROWS]


def test_files_outside_the_folder_are_never_read(make, tmp_path):
    """A patient's name is text, and may say anything."""
    rows = [("x/../../../secret", *CAMELYON_ROWS[0][1:]), *CAMELYON_ROWS[1:]]
    entry, folder = make(CAMELYON_ROWS)
    (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text().replace("0,004,4,3328", f"0,{rows[0][0]},4,3328"))
    with pytest.raises(UserError, match="lacks 1 image"):
        camelyon17(entry)
