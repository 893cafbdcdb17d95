import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.datasets import histo_mini
from dpsapf.datasets.histo_mini import Nuclei, draw_patch, stamp
from dpsapf.datasets.textures import CANVAS
from tests.all_images import as_part

PLACES = st.lists(st.tuples(st.floats(-5, CANVAS + 5), st.floats(-5, CANVAS + 5)), min_size=1, max_size=4)


def nucleus(**changes):
    values = {"centres": [[32.0, 32.0]], "radii": [5.0], "elongation": [1.0], "angles": [0.0], "density": [1.0], "pallor": [0.0]}
    return Nuclei(**{name: np.array(value) for name, value in {**values, **changes}.items()})


def alike(centres, densities):
    count = len(centres)
    shapes = {"radii": [4.0] * count, "elongation": [1.5] * count, "angles": [0.7] * count, "pallor": [0.5] * count}
    return nucleus(centres=centres, density=densities, **shapes)


def test_both_classes_have_as_many_patches(make_entry, monkeypatch):
    assert 2 * histo_mini.PER_CLASS == 5000
    monkeypatch.setattr(histo_mini, "PER_CLASS", 3)
    entry = make_entry(loader="histo-mini", classes=("normal", "tumour"), resolution=24, procedural=True)
    part = as_part(histo_mini.histo_mini(entry))
    assert part.images.shape == (6, 24, 24, 3) and np.bincount(part.labels).tolist() == [3] * 2


def test_a_round_nucleus_has_its_area():
    canvas = stamp(nucleus())
    assert canvas.sum() == pytest.approx(np.pi * 25, rel=0.1)  # the soft edge adds a few percent
    assert canvas.max() == pytest.approx(1, abs=0.01)


def test_elongation_keeps_the_area_and_turns_with_the_angle():
    upright, flat = (stamp(nucleus(elongation=[2.0], angles=[angle])) for angle in (0.0, np.pi / 2))
    assert np.allclose(upright, flat.T, atol=1e-9)
    assert (upright.max(axis=1) > 0.5).sum() > (upright.max(axis=0) > 0.5).sum()
    assert upright.sum() == pytest.approx(stamp(nucleus()).sum(), rel=0.05)


def test_a_pale_nucleus_has_a_rim():
    canvas = stamp(nucleus(pallor=[0.9]))
    assert canvas[32, 34] < 0.85 * canvas[32, 36]
    full = stamp(nucleus())
    assert full[32, 34] > full[32, 36]


def test_nuclei_at_the_border_are_cut_and_none_is_fine():
    assert stamp(nucleus(centres=[[0.0, 0.0]])).sum() == pytest.approx(np.pi * 25 / 4, rel=0.15)
    empty = {name: np.zeros((0, 2)) if name == "centres" else np.zeros(0) for name in nucleus().__dict__}
    assert stamp(Nuclei(**empty)).sum() == 0


@settings(max_examples=40, deadline=None)
@given(PLACES, st.data())
def test_the_densest_wins_where_nuclei_overlap(centres, data):
    densities = data.draw(st.lists(st.floats(0.4, 2), min_size=len(centres), max_size=len(centres)))
    together = stamp(alike(centres, densities))
    apart = [stamp(alike([centre], [density])) for centre, density in zip(centres, densities, strict=True)]
    assert np.allclose(together, np.maximum.reduce(apart), rtol=0, atol=1e-12)
    assert together.min() >= 0 and together.max() <= max(densities)


@settings(max_examples=30, deadline=None)
@given(st.integers(-12, 12), st.integers(-12, 12))
def test_a_nucleus_looks_the_same_everywhere(down, right):
    moved = stamp(nucleus(centres=[[32.3 + down, 31.8 + right]], elongation=[1.7], angles=[0.4], pallor=[0.6]))
    still = stamp(nucleus(centres=[[32.3, 31.8]], elongation=[1.7], angles=[0.4], pallor=[0.6]))
    assert np.allclose(moved, np.roll(still, (down, right), (0, 1)), atol=1e-9)


def stained(haematoxylin, eosin, seed):
    """Mean light of each channel."""
    return histo_mini._stain(np.full((CANVAS, CANVAS), haematoxylin), eosin, np.random.default_rng(seed)).mean((0, 1))


def test_nuclei_are_blue_and_the_tissue_between_is_pink():
    red, green, blue = np.mean([stained(0.0, 0.6, seed) for seed in range(20)], axis=0)
    assert red > blue > green
    red, green, blue = np.mean([stained(1.5, 0.0, seed) for seed in range(20)], axis=0)
    assert blue > red > green


def test_more_stain_lets_less_light_through():
    for seed in range(10):
        for stains in ([(0.0, 0.2), (0.0, 0.5), (0.0, 0.8)], [(0.5, 0.3), (1.0, 0.3), (1.5, 0.3)]):
            assert np.diff([stained(*amounts, seed) for amounts in stains], axis=0).max() < 0


def cells(make, *arguments, draws=200):
    return [make(*arguments, np.random.default_rng(seed)) for seed in range(draws)]


@pytest.mark.parametrize(
    ("make", "full"), [(histo_mini._lymphocytes, 81), (lambda s, g: histo_mini._large_cells(s, True, g), 32.3)]
)
def test_cells_are_as_many_as_their_share(make, full):
    counts = {share: np.mean([len(nuclei.radii) for nuclei in cells(make, share)]) for share in (0.0, 0.5, 1.0)}
    assert counts[0.0] == 0
    assert counts[0.5] == pytest.approx(full / 2, rel=0.06) and counts[1.0] == pytest.approx(full, rel=0.06)


def test_tumour_cells_are_larger_longer_and_of_more_sizes():
    benign, malignant = (cells(histo_mini._large_cells, 1.0, kind) for kind in (False, True))
    for what in (np.mean, np.std):
        assert what(np.concatenate([n.radii for n in malignant])) > 1.15 * what(np.concatenate([n.radii for n in benign]))
    assert max(n.elongation.max() for n in benign) <= 1.3 < max(n.elongation.max() for n in malignant) <= 1.8
    lymphocytes = np.concatenate([n.radii for n in cells(histo_mini._lymphocytes, 1.0)])
    assert lymphocytes.max() <= 4 < np.mean(np.concatenate([n.radii for n in benign]))


@pytest.mark.parametrize("label", [0, 1])
def test_a_patch_is_light_of_three_channels(label):
    patches = np.stack([draw_patch(label, np.random.default_rng(seed)) for seed in range(30)])
    assert patches.shape == (30, CANVAS, CANVAS, 3)
    assert patches.min() > -0.1 and patches.max() < 1.1, "but for the camera's noise in (0, 1]"
    assert np.array_equal(patches[3], draw_patch(label, np.random.default_rng(3)))
    assert not np.array_equal(patches[3], draw_patch(1 - label, np.random.default_rng(3)))
