"""histo-mini: a PROCEDURAL stand-in for Camelyon17's patches, normal lymph node against tumour.

No tissue was ever scanned. A patch is a sum of two stains' optical densities (stain vectors of
Macenko et al., ISBI 2009): haematoxylin in the nuclei, eosin around them. Normal lymph
node is packed with small, round, dark lymphocytes, with some larger pale cells of germinal centres;
tumour has large, irregular, pale nuclei with rims and nucleoli, in more eosin, mixed with
lymphocytes in every proportion. Stain strength and hue vary from patch to patch as between hospitals.
"""

from dataclasses import dataclass

import numpy as np

from dpsapf.datasets.images import Source
from dpsapf.datasets.textures import CANVAS, render_dataset, smooth_noise
from dpsapf.experiment.registries import DatasetEntry

PER_CLASS = 2500
TUMOUR = 1
HAEMATOXYLIN = np.array([0.5626, 0.7201, 0.4062])  # optical density per unit of stain in red, green, blue
EOSIN = np.array([0.2159, 0.8012, 0.5581])
REACH = 1.35  # a nucleus is drawn in a window of this many long half axes to each side


@dataclass
class Nuclei:
    """K nuclei; lengths in canvas pixels.

    Attributes:
        centres: float64 [K, 2], row and column.
        radii: float64 [K], geometric mean of the half axes.
        elongation: float64 [K], ratio of the half axes, at least 1.
        angles: float64 [K], radians.
        density: float64 [K], haematoxylin in the nucleus.
        pallor: float64 [K] in [0, 1]; 1 is a pale centre inside a dark rim.
    """

    centres: np.ndarray
    radii: np.ndarray
    elongation: np.ndarray
    angles: np.ndarray
    density: np.ndarray
    pallor: np.ndarray


def histo_mini(entry: DatasetEntry) -> Source:
    """Render 2 x 2,500 RGB patches, drawn at 64 x 64 and reduced to the entry's resolution.

    Returns:
        All images, without splits: uint8 [5000, resolution, resolution, 3].

    Raises:
        UserError: the entry has a digest and the rendered images have another.
    """
    return render_dataset(entry, draw_patch, PER_CLASS)


def draw_patch(label: int, generator: np.random.Generator) -> np.ndarray:
    """Draw one patch (label 0: normal lymph node, 1: tumour).

    Returns:
        float64 [CANVAS, CANVAS, 3], transmitted light in (0, 1].
    """
    if label == TUMOUR:
        large, eosin = generator.beta(2.0, 1.5), generator.uniform(0.35, 0.75)
    else:
        large, eosin = generator.beta(1.2, 5.0), generator.uniform(0.25, 0.6)
    haematoxylin = np.zeros((CANVAS, CANVAS))
    for nuclei in (_lymphocytes(1 - large, generator), _large_cells(large, label == TUMOUR, generator)):
        haematoxylin = np.maximum(haematoxylin, stamp(nuclei))
    return _stain(haematoxylin, eosin, generator)


def _lymphocytes(share: float, generator: np.random.Generator) -> Nuclei:
    count = generator.poisson(90 * share * generator.uniform(0.6, 1.2))
    return Nuclei(
        centres=generator.uniform(0, CANVAS, (count, 2)),
        radii=generator.normal(2.9, 0.3, count).clip(2, 4),
        elongation=generator.uniform(1.0, 1.3, count),
        angles=generator.uniform(0, np.pi, count),
        density=generator.normal(1.25, 0.15, count).clip(0.6, 2),
        pallor=generator.uniform(0.0, 0.25, count),
    )


def _large_cells(share: float, malignant: bool, generator: np.random.Generator) -> Nuclei:
    count = generator.poisson(34 * share * generator.uniform(0.7, 1.2))
    spread = generator.uniform(0.12, 0.30) if malignant else 0.10
    return Nuclei(
        centres=generator.uniform(0, CANVAS, (count, 2)),
        radii=(generator.uniform(4.6, 6.0) if malignant else 4.4) * generator.lognormal(0, spread, count).clip(0.6, 1.5),
        elongation=generator.uniform(1.0, 1.8 if malignant else 1.3, count),
        angles=generator.uniform(0, np.pi, count),
        density=generator.normal(0.95, 0.2, count).clip(0.4, 1.8),
        pallor=generator.uniform(0.3, 0.9, count),
    )


def stamp(nuclei: Nuclei) -> np.ndarray:
    """Draw nuclei as soft ellipses onto an empty canvas; the densest wins where they overlap.

    Returns:
        Haematoxylin, float64 [CANVAS, CANVAS], at least 0.
    """
    reach = int(np.ceil(REACH * np.max(nuclei.radii * np.sqrt(nuclei.elongation), initial=1)))
    pixels = np.floor(nuclei.centres).astype(int)[:, :, None, None] + np.mgrid[-reach : reach + 1, -reach : reach + 1]
    row, column = np.moveaxis(pixels + 0.5 - nuclei.centres[:, :, None, None], 1, 0)
    angles, stretch = nuclei.angles[:, None, None], np.sqrt(nuclei.elongation)[:, None, None]
    along = (row * np.cos(angles) + column * np.sin(angles)) / stretch
    across = (column * np.cos(angles) - row * np.sin(angles)) * stretch
    distance = np.hypot(along, across) / nuclei.radii[:, None, None]
    edge = 1 / (1 + np.exp(9 * (distance - 1)))
    centre = np.exp(-((distance / 0.65) ** 4)) - 0.7 * np.exp(-((distance / 0.2) ** 2))  # a nucleolus in the pale middle
    density = nuclei.density[:, None, None] * edge * (1 - 0.7 * nuclei.pallor[:, None, None] * centre)
    canvas = np.zeros((CANVAS, CANVAS))
    inside = ((pixels >= 0) & (pixels < CANVAS)).all(axis=1)
    np.maximum.at(canvas, (pixels[:, 0][inside], pixels[:, 1][inside]), density[inside])
    return canvas


def _stain(haematoxylin: np.ndarray, eosin: float, generator: np.random.Generator) -> np.ndarray:
    fibres = (
        smooth_noise(generator, 3)
        + 0.6 * smooth_noise(generator, *generator.permutation([5, 16]))
        + 0.4 * smooth_noise(generator, 30)
    )
    pink = np.maximum(eosin * (1 + 0.35 * fibres), 0.02) * (1 - 0.4 * np.minimum(haematoxylin, 1))
    blue = (haematoxylin * (1 + 0.12 * smooth_noise(generator, 24)) + 0.06) * generator.uniform(0.7, 1.3)
    vectors = np.stack([HAEMATOXYLIN, EOSIN]) * generator.normal(1, 0.08, (2, 3))
    light = np.exp(-(blue[..., None] * vectors[0] + pink[..., None] * vectors[1]))
    return light * generator.uniform(0.92, 1.0) + generator.normal(0, 0.012, light.shape)
