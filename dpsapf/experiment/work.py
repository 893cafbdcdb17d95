"""How much a public model computes for one image: counted once (`dpsapf.bench.work`), read here without torch."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

FILE = Path(__file__).with_name("work.json")
CLASSIFIERS_FILE = FILE.with_name("classifiers.json")
CLASSIFIERS_SIDE = 32  # of the images for which classifiers were counted [pixels]


@dataclass(frozen=True)
class Work:
    """Operations of one image, multiplications and additions, in TFLOP.

    Attributes:
        resolution: at which they were counted, side of the image [pixels].
        parameters: of the denoiser.
        forward: of the denoiser.
        frozen: forward and backward through a denoiser whose own weights get no gradient.
        full: forward and backward, with gradients of all weights.
        encode: of the VAE.
        decode: of the VAE.
    """

    resolution: int
    parameters: int
    forward: float
    frozen: float
    full: float
    encode: float
    decode: float

    def at(self, resolution: int) -> "Work":
        """Scale to another resolution by the number of pixels, which leaves out that attention grows faster."""
        factor = (resolution / self.resolution) ** 2
        counts = {name: factor * getattr(self, name) for name in ("forward", "frozen", "full", "encode", "decode")}
        return replace(self, resolution=resolution, **counts)


@functools.cache
def architectures() -> dict[str, Work]:
    """Return every architecture that was counted, by its name."""
    return {name: Work(**counts) for name, counts in json.loads(FILE.read_text()).items()}


@functools.cache
def classifiers() -> dict[str, float]:
    """Return what a training costs for each image it sees, of `CLASSIFIERS_SIDE`, by the classifier's name [TFLOP]."""
    return json.loads(CLASSIFIERS_FILE.read_text())
