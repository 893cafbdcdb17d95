import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.datasets import oct_mini
from dpsapf.datasets.oct_mini import DRUSEN, MACULAR_OEDEMA, NEOVASCULARISATION, NORMAL, draw_scan
from dpsapf.datasets.textures import CANVAS
from tests.all_images import as_part

SEEDS = st.integers(0, 2**32)


def painted(paint, severity, seed=0):
    """A scan and its picture; equal seeds have equal anatomies."""
    generator = np.random.default_rng(seed)
    scan = oct_mini._anatomy(generator)
    return scan, paint(scan, severity, generator)


def normal(scan, severity, generator):
    return oct_mini._layers(scan, generator)


def test_every_class_has_as_many_scans(make_entry, monkeypatch):
    assert 4 * oct_mini.PER_CLASS == 5000
    monkeypatch.setattr(oct_mini, "PER_CLASS", 3)
    names = ("cnv", "dme", "drusen", "normal")
    entry = make_entry(loader="oct-mini", classes=names, prompts=names, channels=1, resolution=24, procedural=True)
    part = as_part(oct_mini.oct_mini(entry))
    assert part.images.shape == (12, 24, 24, 1) and np.bincount(part.labels).tolist() == [3] * 4


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_the_healthy_retina_lies_in_the_picture(seed):
    scan = oct_mini._anatomy(np.random.default_rng(seed))
    assert scan.ilm.min() > 0 and scan.base.max() < 1
    assert (scan.rpe - scan.ilm).min() > 0.05, "the pit never goes through"
    assert 0.3 <= scan.fovea <= 0.7


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([NEOVASCULARISATION, MACULAR_OEDEMA, DRUSEN, NORMAL]), SEEDS)
def test_a_scan_depends_on_class_and_generator_alone(label, seed):
    first, second = (draw_scan(label, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (CANVAS, CANVAS) and np.isfinite(first).all() and first.min() >= 0
    assert np.array_equal(first, second)
    assert not np.array_equal(first, draw_scan((label + 1) % 4, np.random.default_rng(seed)))


def test_vitreous_is_dark_and_the_pigment_epithelium_brightest():
    for seed in range(20):
        scan, picture = painted(normal, 0.0, seed)
        depth = (oct_mini.Y - scan.ilm) / (scan.rpe - scan.ilm)
        epithelium = picture[(depth > 0.93) & (depth < 0.99)]
        assert picture[depth < -0.05].max() < 0.1 < 0.9 < epithelium.min()
        assert picture[(depth > 0.1) & (depth < 0.8)].max() < epithelium.min()


def test_oedema_makes_dark_cysts_in_the_retina():
    """Pathology drawn on one and the same anatomy changes what it should."""
    dark = []
    for paint in (normal, oct_mini._macular_oedema):
        total = 0
        for seed in range(30):
            scan, picture = painted(paint, 1.0, seed)
            height, thickness = scan.rpe - oct_mini.Y, scan.rpe - scan.ilm
            total += ((picture < 0.15) & (height > 0) & (height < thickness - 0.03)).sum()
        dark.append(total)
    assert dark[0] == 0 < 1000 < dark[1]


@pytest.mark.parametrize("paint", [oct_mini._drusen, oct_mini._neovascularisation])
def test_drusen_and_neovascularisation_lift_the_pigment_epithelium(paint):
    before, _ = painted(normal, 1.0)
    assert np.array_equal(before.rpe, before.base)
    after, _ = painted(paint, 1.0)
    assert (after.base - after.rpe).max() > 0.02
    assert (after.base - after.rpe).min() >= 0
    assert np.array_equal(before.base, after.base), "Bruch's membrane stays"


def lift(paint, severity, seed):
    scan, _ = painted(paint, severity, seed)
    return (scan.base - scan.rpe).max()


def thickening(paint, severity, seed):
    return (oct_mini._anatomy(np.random.default_rng(seed)).ilm - painted(paint, severity, seed)[0].ilm).max()


@pytest.mark.parametrize(
    ("measure", "paint"),
    [(lift, oct_mini._drusen), (lift, oct_mini._neovascularisation), (thickening, oct_mini._macular_oedema)],
)
def test_a_severer_disease_deforms_more(measure, paint):
    for seed in range(15):
        grades = [measure(paint, severity, seed) for severity in (0.0, 0.3, 0.6, 1.0)]
        assert np.diff(grades).min() > 0 and grades[0] > 0, "from barely visible to gross"


def test_exudates_are_small_bright_spots_in_the_retina():
    spots = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        scan = oct_mini._anatomy(generator)
        picture = oct_mini._exudates(np.zeros((CANVAS, CANVAS)), scan, generator)
        assert set(np.unique(picture)) <= {0.0, 0.95}
        rows, columns = np.nonzero(picture)
        assert ((oct_mini.X[rows] > scan.ilm[columns] - 0.03) & (oct_mini.X[rows] < scan.rpe[columns] + 0.03)).all()
        spots.append(len(rows))
    assert min(spots) == 0 < max(spots) < 60


def test_the_camera_mirrors_half_of_the_scans():
    ramp = np.tile(np.linspace(0.2, 0.9, CANVAS), (CANVAS, 1))
    seen = [oct_mini._acquire(ramp, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = np.mean([picture[:, :32].mean() > picture[:, 32:].mean() for picture in seen])
    assert 0.38 < mirrored < 0.62  # three standard errors
