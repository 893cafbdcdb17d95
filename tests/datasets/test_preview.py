import numpy as np
import pytest

from dpsapf.datasets.images import LabelledImages
from dpsapf.datasets.preview import COLUMNS, GAP, TILE, contact_sheet

COLOUR = (9, 99, 200)


def flat(count, side=8, colour=COLOUR):
    return np.full((count, side, side, 3), colour, np.uint8)


def drawn(images, labels, classes=("a", "b"), title=""):
    return np.asarray(contact_sheet(LabelledImages(images, np.array(labels)), classes, title))


def where(sheet, colour=COLOUR):
    """Rows and columns of the pixels that have a colour."""
    return np.nonzero((sheet == colour).all(-1))


def test_the_preview_shows_each_class_in_its_row():
    images = np.zeros((30, 32, 32, 3), np.uint8)
    labels = np.arange(30) % 2
    images[labels == 1] = (200, 10, 10)
    sheet = drawn(images, labels, ("black", "red"), "title")
    black, red = (sheet == 0).all(-1), (sheet == (200, 10, 10)).all(-1)
    tile = 64 * 64
    assert red.sum() == COLUMNS * tile
    assert black[np.flatnonzero(black.sum(1) >= COLUMNS * 64)].sum() >= COLUMNS * tile
    assert np.flatnonzero(red.any(1)).min() > np.flatnonzero(black.sum(1) >= COLUMNS * 64).max()


def test_a_class_with_few_images_leaves_the_row_short():
    assert len(where(drawn(flat(3), [0, 0, 1]))[0]) == 3 * TILE * TILE


def test_a_class_without_images_has_an_empty_row():
    sheet = drawn(flat(2), [0, 2], ("a", "b", "c"))
    rows = np.unique(where(sheet)[0])
    assert len(rows) == 2 * TILE and np.diff(rows).max() == TILE + 2 * GAP + 1, "room for the row between"


def test_the_first_twelve_of_a_class_are_shown_in_their_order():
    images = np.zeros((40, 8, 8, 3), np.uint8)
    images[:, ..., 0] = (100 + np.arange(40))[:, None, None]
    labels = np.arange(40) % 2
    sheet = drawn(images, labels)
    for label in (0, 1):
        shown = np.flatnonzero(labels == label)[:COLUMNS]
        lefts = [where(sheet, (100 + index, 0, 0))[1].min() for index in shown]
        assert np.diff(lefts).tolist() == [TILE + GAP] * (COLUMNS - 1)
        assert not len(where(sheet, (100 + 2 * COLUMNS + label, 0, 0))[0]), "the thirteenth"


@pytest.mark.parametrize(("side", "shown"), [(1, 64), (8, 64), (32, 64), (40, 80), (63, 126), (64, 64), (100, 100)])
def test_small_images_are_enlarged_by_a_whole_factor_without_smoothing(side, shown):
    image = np.random.default_rng(side).integers(0, 250, (1, side, side, 3), dtype=np.uint8)
    sheet = drawn(image, [0], ("",))
    factor = shown // side
    corner = [axis.min() for axis in np.nonzero((sheet != 255).any(-1))]
    tile = sheet[corner[0] : corner[0] + shown, corner[1] : corner[1] + shown]
    assert np.array_equal(tile, image[0].repeat(factor, 0).repeat(factor, 1))


def test_long_names_and_titles_are_not_cut():
    short = drawn(flat(2), [0, 1])
    named = drawn(flat(2), [0, 1], ("a", "choroidal neovascularisation"))
    assert named.shape[1] > short.shape[1]
    assert where(named)[1].min() > where(short)[1].min(), "the tiles give way"
    titled = drawn(flat(2), [0, 1], title="a title " * 40)
    assert titled.shape[1] > 1.5 * short.shape[1] and (titled[:, -6:] == 255).all()
    assert where(titled)[1].min() == where(short)[1].min()


def test_names_stand_beside_their_rows():
    sheet = drawn(flat(2), [0, 1], ("W", ""))
    rows, columns = where(sheet)
    left = sheet[:, : columns.min()]
    ink = np.flatnonzero((left[rows.min() :] < 128).all(-1).any(1)) + rows.min()
    assert len(ink) and ink.max() < rows.min() + TILE, "the first class has a name, the second none"
    assert abs(ink.mean() - (rows.min() + TILE / 2)) < 5
