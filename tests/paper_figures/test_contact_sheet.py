import matplotlib.image
import numpy as np
import pytest

from paper_figures.contact_sheet import NAMES, Block, prepare
from paper_figures.images import read_rows
from paper_figures.results import MissingStudy, load_results
from tests.prepared_dataset import write_dataset


@pytest.fixture(scope="module")
def data(results):
    return prepare(results)


def test_rows_are_read_without_the_rest_of_the_archive(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 4, 3), np.uint8)
    np.savez(tmp_path / "plain.npz", labels=np.arange(20), images=images)
    np.savez_compressed(tmp_path / "compressed.npz", labels=np.arange(20), images=images)
    for name in ("plain", "compressed"):
        np.testing.assert_array_equal(read_rows(tmp_path / f"{name}.npz", [7, 0, 19]), images[[7, 0, 19]])
    parts = {"test": (images[:10], np.arange(10)), "train": (images[10:], np.arange(10))}
    write_dataset(tmp_path / "dataset.safetensors", parts)
    np.testing.assert_array_equal(read_rows(tmp_path / "dataset.safetensors", [7, 0]), images[[17, 10]])


def test_real_images_come_first_then_every_method_of_the_dataset(data):
    rows = data[data["dataset"] == "mnist5k"]["row"].unique().tolist()
    assert rows[:2] == ["real images", "DP-SAPF, matrices 30 %"]
    assert len(rows) == 6
    assert data[data["dataset"] == "oct-mini"]["row"].nunique() == 4


def test_every_class_has_equally_many_images_of_its_own_label(data, results):
    rows = data[(data["dataset"] == "oct-mini") & (data["row"] == "DP-LoRA")]
    assert rows.groupby("class", sort=False).size().tolist() == [5, 5, 5, 5]
    labels = np.load(rows["archive"].iloc[0])["labels"]
    assert labels[rows["index"]].tolist() == np.repeat(np.arange(4), 5).tolist()
    assert rows["archive"].iloc[0].parent.name.endswith("--seed0")
    assert rows["archive"].iloc[0].is_relative_to(results.layout.root)


def test_mosaic_holds_the_images_unchanged(data):
    rows = data[data["dataset"] == "oct-mini"]
    mosaic = Block(rows).mosaic()
    shown = rows[rows["row"] == "DP-LoRA"].iloc[6]
    top = rows["row"].unique().tolist().index("DP-LoRA") * 33
    tile = mosaic[top : top + 32, 6 * 33 : 6 * 33 + 32]
    np.testing.assert_array_equal(tile, np.load(shown["archive"])["images"][shown["index"]])


def test_png_shows_every_image_pixel_as_a_whole_square(data, demo):
    block = Block(data[data["dataset"] == "mnist5k"])
    assert block.scale == 2
    picture = np.rint(255 * matplotlib.image.imread(demo / "figures" / "contact_sheet.png")[..., :3]).astype(np.uint8)
    rows, columns = (2 * side for side in block.pixels)
    drawn = picture[block.header : block.header + rows, NAMES : NAMES + columns]
    np.testing.assert_array_equal(drawn, block.mosaic().repeat(2, axis=0).repeat(2, axis=1))


def test_long_class_names_are_wrapped_to_their_columns(data):
    classes = Block(data[data["dataset"] == "oct-mini"]).classes
    assert classes["choroidal neovascularisation"][0] == "choroidal\nneovascularisation"
    assert classes["drusen"][0] == "drusen"


def test_a_class_without_samples_leaves_its_columns_white(data):
    rows = data[data["dataset"] == "oct-mini"]
    missing = rows[~((rows["row"] == "DP-LoRA") & (rows["class"] == "drusen"))]
    mosaic = Block(missing).mosaic()
    top = rows["row"].unique().tolist().index("DP-LoRA") * 33
    assert (mosaic[top : top + 32, 10 * 33 : 15 * 33 - 1] == 255).all()
    assert not (mosaic[top : top + 32, 15 * 33 : 16 * 33 - 1] == 255).all()


def test_datasets_without_images_are_left_out_and_none_at_all_is_said(smallest):
    with pytest.raises(MissingStudy, match=r"samples\.npz"):
        prepare(load_results(smallest))


def test_columns_do_not_exceed_the_sheet(data):
    assert data.groupby("dataset", sort=False)["column"].max().tolist() == [19, 19]
