"""oct-mini: a PROCEDURAL stand-in for OCTMNIST's four retinal classes. No patient was ever imaged.

A B-scan is drawn from two boundaries, the inner limiting membrane (ILM) and the retinal pigment
epithelium (RPE), with the retina's bright and dark layers between them, the choroid below and
speckle over everything. What marks a class follows the clinical description of Kermany et al.,
Cell 172(5), 2018, in grades from barely visible to gross, so that neighbouring classes overlap.
"""

from dataclasses import dataclass

import numpy as np

from dpsapf.datasets.images import Source
from dpsapf.datasets.textures import CANVAS, render_dataset, smooth_noise
from dpsapf.experiment.registries import DatasetEntry

PER_CLASS = 1250
NEOVASCULARISATION, MACULAR_OEDEMA, DRUSEN, NORMAL = range(4)

# reflectivity over relative depth from the ILM (0) to the RPE's lower edge (1)
DEPTHS = np.array([-0.03, 0.0, 0.10, 0.16, 0.38, 0.43, 0.52, 0.56, 0.62, 0.66, 0.80, 0.84, 0.88, 0.91, 1.0, 1.03])
REFLECTIVITIES = np.array([0.05, 0.72, 0.66, 0.46, 0.44, 0.26, 0.28, 0.46, 0.42, 0.22, 0.22, 0.62, 0.40, 0.92, 0.95, 0.52])

X = (np.arange(CANVAS) + 0.5) / CANVAS
Y = X[:, np.newaxis]


@dataclass
class Scan:
    """A B-scan under construction; lengths are shares of the picture's side.

    Attributes:
        ilm: upper boundary of the retina, float64 [CANVAS].
        rpe: lower boundary of the retina, float64 [CANVAS].
        base: where the RPE lies without pathology (Bruch's membrane), float64 [CANVAS].
        fovea: horizontal centre of the pit.
    """

    ilm: np.ndarray
    rpe: np.ndarray
    base: np.ndarray
    fovea: float


def oct_mini(entry: DatasetEntry) -> Source:
    """Render 4 x 1,250 grey B-scans, drawn at 64 x 64 and reduced to the entry's resolution.

    Returns:
        All images, without splits: uint8 [5000, resolution, resolution, 1].

    Raises:
        UserError: the entry has a digest and the rendered images have another.
    """
    return render_dataset(entry, draw_scan, PER_CLASS)


def draw_scan(label: int, generator: np.random.Generator) -> np.ndarray:
    """Draw one B-scan of a class (label 0 to 3: CNV, DME, drusen, normal).

    Returns:
        float64 [CANVAS, CANVAS], about 0 (black) to 1 (white).
    """
    scan = _anatomy(generator)
    severity = generator.beta(1.6, 1.2)
    if label == NEOVASCULARISATION:
        picture = _neovascularisation(scan, severity, generator)
    elif label == MACULAR_OEDEMA:
        picture = _macular_oedema(scan, severity, generator)
    elif label == DRUSEN:
        picture = _drusen(scan, severity, generator)
    else:
        picture = _layers(scan, generator)
    return _acquire(picture, generator)


def _anatomy(generator: np.random.Generator) -> Scan:
    fovea = generator.uniform(0.3, 0.7)
    offset = X - 0.5
    base = generator.uniform(0.60, 0.74) + generator.normal(0, 0.07) * offset + generator.uniform(-0.05, 0.22) * offset**2
    base += 0.004 * smooth_noise(generator, 1, 5)[0]
    thickness = generator.uniform(0.26, 0.36)
    pit = generator.choice([0.0, 1.0], p=[0.25, 0.75]) * generator.uniform(0.3, 0.6)
    ilm = base - thickness * (1 - pit * _bump(fovea, generator.uniform(0.09, 0.15)))
    return Scan(ilm + 0.006 * smooth_noise(generator, 1, 6)[0], base.copy(), base, fovea)


def _bump(centre: float, width: float) -> np.ndarray:
    return np.exp(-(((X - centre) / width) ** 2))


def _layers(scan: Scan, generator: np.random.Generator) -> np.ndarray:
    depth = (Y - scan.ilm) / (scan.rpe - scan.ilm)
    retina = np.interp(depth, DEPTHS, REFLECTIVITIES)
    below = Y - scan.base
    choroid = 0.50 * np.exp(-np.maximum(below, 0) / generator.uniform(0.10, 0.22)) * (1 + 0.35 * smooth_noise(generator, 14))
    return np.where((depth > 1.03) & (below > 0.01), choroid, retina)


def _neovascularisation(scan: Scan, severity: float, generator: np.random.Generator) -> np.ndarray:
    centre, width = scan.fovea + generator.normal(0, 0.08), generator.uniform(0.10, 0.20)
    lesion = (0.03 + 0.13 * severity) * _bump(centre, width)
    fluid = (0.01 + 0.07 * severity) * _bump(centre + generator.uniform(-0.15, 0.15), width * 1.2)
    scan.rpe = scan.base - lesion - fluid
    scan.ilm = scan.ilm - generator.uniform(0.3, 0.8) * (lesion + fluid)
    picture = _layers(scan, generator)
    membrane = 0.62 + 0.22 * smooth_noise(generator, 12)
    height = scan.base - Y
    inside = (height < lesion) & (height > -0.01)
    picture = np.where(inside & (lesion > 0.012), membrane, picture)
    pocket = (height < lesion + fluid - 0.015) & (height > lesion) & (fluid > 0.012)
    return np.where(pocket, 0.10, picture)


def _macular_oedema(scan: Scan, severity: float, generator: np.random.Generator) -> np.ndarray:
    scan.ilm = scan.ilm - (0.01 + 0.10 * severity) * _bump(scan.fovea, generator.uniform(0.2, 0.35))
    picture = _layers(scan, generator)
    for _ in range(generator.integers(2, 4 + round(6 * severity))):
        centre = scan.fovea + generator.normal(0, 0.14)
        column = int(np.clip(centre, 0, 0.999) * CANVAS)
        retina = scan.rpe[column] - scan.ilm[column]
        middle = scan.ilm[column] + retina * generator.uniform(0.35, 0.75)
        height = retina * generator.uniform(0.06, 0.10 + 0.12 * severity)
        inside = ((X - centre) / (height * generator.uniform(0.6, 1.3))) ** 2 + ((Y - middle) / height) ** 2
        picture = np.where(inside < 1, 0.08 + 0.06 * inside, picture)
    return _exudates(picture, scan, generator)


def _exudates(picture: np.ndarray, scan: Scan, generator: np.random.Generator) -> np.ndarray:
    for _ in range(generator.integers(0, 4)):
        column = int(generator.integers(4, CANVAS - 4))
        middle = scan.ilm[column] + (scan.rpe[column] - scan.ilm[column]) * generator.uniform(0.3, 0.8)
        picture = np.where((X - X[column]) ** 2 + (Y - middle) ** 2 < generator.uniform(0.010, 0.022) ** 2, 0.95, picture)
    return picture


def _drusen(scan: Scan, severity: float, generator: np.random.Generator) -> np.ndarray:
    deposits = np.zeros(CANVAS)
    for _ in range(generator.integers(2, 8)):
        height = generator.uniform(0.012, 0.022 + 0.05 * severity)
        deposits = np.maximum(deposits, height * _bump(generator.uniform(0.08, 0.92), generator.uniform(0.025, 0.06)))
    scan.rpe = scan.base - deposits
    picture = _layers(scan, generator)
    height = scan.base - Y
    inside = (height < deposits - 0.012) & (height > 0)
    return np.where(inside, generator.uniform(0.45, 0.6), picture)


def _acquire(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    for _ in range(generator.integers(0, 4)):  # shadows of vessels
        picture = picture * (1 - generator.uniform(0.2, 0.5) * _bump(generator.uniform(0, 1), generator.uniform(0.01, 0.025)))
    looks = generator.uniform(2.5, 8.0)
    speckled = picture * generator.gamma(looks, 1 / looks, picture.shape) + generator.normal(0, 0.03, picture.shape)
    if generator.random() < 0.5:
        speckled = speckled[:, ::-1]
    return generator.uniform(0.75, 1.1) * np.maximum(speckled, 0) ** generator.uniform(0.75, 1.1)
