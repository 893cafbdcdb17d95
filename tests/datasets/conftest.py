import io

import numpy as np
import pytest
from PIL import Image

from dpsapf.experiment.registries import DatasetEntry


@pytest.fixture
def make_entry():
    def make(**changes):
        values = {
            "loader": "image-folder",
            "source": "nowhere",
            "licence": "none",
            "classes": ("cat", "dog"),
            "prompts": ("a cat", "a dog"),
            "resolution": 16,
            "channels": 3,
            "validation": 2,
            "test": 4,
        }
        return DatasetEntry(**{**values, **changes})

    return make


@pytest.fixture
def picture():
    """Bytes of a random image file; equal arguments give equal bytes."""

    def encode(seed=0, mode="RGB", size=(20, 20), kind="PNG"):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
        image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels[..., :3]).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind)
        return buffer.getvalue()

    return encode


@pytest.fixture
def plant(tmp_path):
    """Write ``{name: bytes}`` below a new folder."""

    def write(files, folder="source"):
        for name, data in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / folder

    return write


@pytest.fixture
def pool(picture):
    """Files of a flat folder: 8 cats and 6 dogs, PNG and JPEG."""
    cats = {f"cat/{n}.png": picture(n) for n in range(8)}
    return cats | {f"dog/{n}.jpg": picture(100 + n, kind="JPEG") for n in range(6)}
