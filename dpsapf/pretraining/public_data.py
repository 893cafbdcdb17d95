"""Public images and prompts for ``public-mini``: glyphs, photographs' crops, shapes and textures.

Everything comes from packages that pip installs (fonts of matplotlib, photographs of scikit-image and
scikit-learn) or is drawn here; no sensitive dataset of the suite is read. Image ``i`` of seed ``s`` depends on
``(s, i)`` alone, so images can be drawn in any order and in parallel.
"""

import functools
import string
import typing
from pathlib import Path

import numpy as np
from scipy import ndimage

from dpsapf.support.errors import UserError
from dpsapf.support.randomness import numpy_generator

if typing.TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 32
CANVAS = 48  # glyphs are rendered on this square and warped to SIDE
DIGITS = string.digits
BAR_ONES = 0.6  # share of handwritten ones without serif and foot: the glyph "|"
LETTERS = string.ascii_uppercase + string.ascii_lowercase
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (210, 40, 40),
    "green": (50, 160, 60),
    "blue": (50, 80, 200),
    "yellow": (235, 210, 50),
    "orange": (235, 140, 40),
    "purple": (140, 60, 170),
    "pink": (240, 150, 190),
    "brown": (130, 80, 40),
}
PHOTOGRAPHS: dict[str, str] = {
    "astronaut.png": "an astronaut",
    "chelsea.png": "a cat",
    "coffee.png": "a cup of coffee",
    "rocket.jpg": "a rocket",
    "brick.png": "a brick wall",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "moon.png": "the moon",
    "coins.png": "coins",
    "camera.png": "a man with a camera",
    "hubble_deep_field.jpg": "galaxies",
    "motorcycle_left.png": "a motorcycle",
    "china.jpg": "a temple",
    "flower.jpg": "a flower",
}
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
TEXTURES = ("horizontal stripes", "vertical stripes", "diagonal stripes", "a checkerboard", "smooth noise", "blobs", "layers")
KINDS: dict[str, float] = {"digit": 0.36, "letter": 0.2, "photograph": 0.16, "shape": 0.12, "texture": 0.16}
CLASSES: tuple[str, ...] = (*DIGITS, *LETTERS, *PHOTOGRAPHS.values(), *SHAPES, *TEXTURES)


class Example(typing.NamedTuple):
    """One public image.

    Attributes:
        image: uint8 [32, 32, 3].
        prompt: what it shows.
        label: index in `CLASSES`, for the feature network.
    """

    image: np.ndarray
    prompt: str
    label: int


def draw_example(seed: int, index: int) -> Example:
    """Draw public image ``index`` of a seed; the same on every call."""
    generator = numpy_generator(seed, "public", index)
    kind = generator.choice(list(KINDS), p=list(KINDS.values()))
    return DRAWERS[str(kind)](generator)


def draw_range(job: tuple[int, int, int]) -> list[Example]:
    """Draw the images of one job (seed, start, stop) of a process pool."""
    seed, start, stop = job
    return [draw_example(seed, index) for index in range(start, stop)]


def draw_digit(generator: np.random.Generator) -> Example:
    """Draw a digit; four in five are white on black, with warped and thickened strokes, as if handwritten."""
    glyph = str(generator.choice(list(DIGITS)))
    handwritten = generator.random() < 0.8
    bar = glyph == "1" and handwritten and generator.random() < BAR_ONES
    mask = _warped_glyph("|" if bar else glyph, generator, handwritten)
    prompt = f"a handwritten digit {glyph}" if handwritten else f"a printed digit {glyph}"
    return _glyph_example(glyph, mask, prompt, generator, plain=handwritten or generator.random() < 0.5)


def draw_letter(generator: np.random.Generator) -> Example:
    """Draw a letter, handwritten or printed, half of them in colours."""
    glyph = str(generator.choice(list(LETTERS)))
    handwritten = generator.random() < 0.5
    mask = _warped_glyph(glyph, generator, handwritten)
    case = "capital letter" if glyph.isupper() else "small letter"
    prompt = f"a {'handwritten' if handwritten else 'printed'} {case} {glyph}"
    return _glyph_example(glyph, mask, prompt, generator, plain=generator.random() < 0.5)


def _glyph_example(glyph: str, mask: np.ndarray, prompt: str, generator: np.random.Generator, plain: bool) -> Example:
    ink, paper = ("white", "black") if plain else _two_colours(generator)
    image = _blend(mask, COLOURS[ink], COLOURS[paper])
    if not plain:
        prompt += f" in {ink} on {paper}"
    return Example(image, prompt, CLASSES.index(glyph))


def _two_colours(generator: np.random.Generator) -> tuple[str, str]:
    first, second = generator.choice(list(COLOURS), 2, replace=False)
    return str(first), str(second)


def _blend(mask: np.ndarray, ink: tuple[int, int, int], paper: tuple[int, int, int]) -> np.ndarray:
    weight = np.clip(mask, 0, 1)[..., None]
    return (weight * np.array(ink) + (1 - weight) * np.array(paper)).round().astype(np.uint8)


@functools.cache
def font_files() -> list[Path]:
    """List matplotlib's text fonts: DejaVu, STIX and Computer Modern, without symbol fonts."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10", "cmti10", "cmb10")
    return sorted(path for path in folder.glob("*.ttf") if path.stem.startswith(names) and "Display" not in path.stem)


@functools.lru_cache(maxsize=4096)
def _glyph(font: Path, glyph: str) -> np.ndarray:
    """Render a glyph centred on a CANVAS square, about 32 pixels high, float32 in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(font, 40)
    left, top, right, bottom = face.getbbox(glyph)
    scale = 32 / max(bottom - top, right - left, 1)
    face = ImageFont.truetype(font, max(8, round(40 * min(scale, 1.6))))
    picture = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(picture).text((CANVAS / 2, CANVAS / 2), glyph, fill=255, font=face, anchor="mm")
    rows, columns = np.nonzero(np.asarray(picture))
    shift = (CANVAS / 2 - (rows.min() + rows.max()) / 2, CANVAS / 2 - (columns.min() + columns.max()) / 2)
    return ndimage.shift(np.asarray(picture, np.float32) / 255, shift, order=1)


@functools.lru_cache(maxsize=4096)
def _skeleton_distance(font: Path, glyph: str) -> np.ndarray:
    """Thin a glyph to lines one pixel wide; distance of each pixel to them, float32 [CANVAS, CANVAS]."""
    from skimage.morphology import skeletonize

    return ndimage.distance_transform_edt(~skeletonize(_glyph(font, glyph) > 0.5)).astype(np.float32)


def _warped_glyph(glyph: str, generator: np.random.Generator, handwritten: bool) -> np.ndarray:
    """Draw a glyph as printed, hardly warped, or with a pen of random width along its skeleton, warped much."""
    fonts = [path for path in font_files() if glyph != "|" or not path.stem.startswith("cm")]  # Computer Modern: a dash
    font = fonts[generator.integers(len(fonts))]
    rows, columns = _warp_coordinates(generator, strength=1.0 if handwritten else 0.25)
    if handwritten:
        distance = ndimage.map_coordinates(_skeleton_distance(font, glyph), [rows, columns], order=1, mode="nearest")
        mask = np.clip(generator.uniform(0.9, 2.5) - distance + 0.5, 0, 1)
    else:
        mask = ndimage.map_coordinates(_glyph(font, glyph), [rows, columns], order=1)
    return ndimage.gaussian_filter(mask, generator.uniform(0.2, 0.7))


def _warp_coordinates(generator: np.random.Generator, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Sample where each of the 32 x 32 pixels looks on the canvas: affine map plus a smooth wobble."""
    angle = np.deg2rad(generator.normal(0, 9 * strength))
    shear = generator.normal(0, 0.22 * strength)
    height, width = generator.uniform(0.54, 0.7) * np.exp(generator.normal(0, [0.05, 0.16]) * strength)
    grid = np.mgrid[:SIDE, :SIDE].astype(np.float32) - (SIDE - 1) / 2
    rows = np.cos(angle) * grid[0] + np.sin(angle) * grid[1]
    columns = np.cos(angle) * grid[1] - np.sin(angle) * grid[0] + shear * grid[0]
    wobble = ndimage.zoom(generator.normal(0, 1.6 * strength, (2, 4, 4)), (1, SIDE / 4, SIDE / 4), order=3)
    shift = generator.normal(0, 0.9, 2) + CANVAS / 2
    return rows / height + wobble[0] + shift[0], columns / width + wobble[1] + shift[1]


@functools.cache
def _photographs() -> list[tuple[str, np.ndarray]]:
    """Read the photographs as RGB, uint8 [H, W, 3].

    Raises:
        UserError: the installed packages lack one of them.
    """
    import skimage
    import sklearn
    from PIL import Image

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    found = []
    for name, title in PHOTOGRAPHS.items():
        paths = [folder / name for folder in folders if (folder / name).exists()]
        if not paths:
            raise UserError("photograph", name, "is not in this scikit-image or scikit-learn; install the locked versions")
        found.append((title, np.asarray(Image.open(paths[0]).convert("RGB"))))
    return found


def draw_photograph(generator: np.random.Generator) -> Example:
    """Cut a random square out of a photograph, flip it at random, change its brightness."""
    from PIL import Image

    photographs = _photographs()
    title, photograph = photographs[generator.integers(len(photographs))]
    shortest = min(photograph.shape[:2])
    side = int(shortest * generator.uniform(0.35, 1.0))
    top, left = (int(generator.integers(size - side + 1)) for size in photograph.shape[:2])
    crop = Image.fromarray(photograph[top : top + side, left : left + side]).resize((SIDE, SIDE), Image.Resampling.BOX)
    image = np.asarray(crop, np.float32) * generator.uniform(0.75, 1.25)
    if generator.random() < 0.5:
        image = image[:, ::-1]
    return Example(np.clip(image, 0, 255).astype(np.uint8), f"a photo of {title}", CLASSES.index(title))


def draw_shape(generator: np.random.Generator) -> Example:
    """Draw a coloured shape on a coloured background."""
    shape = str(generator.choice(list(SHAPES)))
    ink, paper = _two_colours(generator)
    centre = SIDE / 2 + generator.normal(0, 2.5, 2)
    angle = generator.uniform(0, 2 * np.pi) if shape != "circle" else 0.0
    grid = np.mgrid[:SIDE, :SIDE] - centre[:, None, None]
    rows = np.cos(angle) * grid[0] + np.sin(angle) * grid[1]
    columns = np.cos(angle) * grid[1] - np.sin(angle) * grid[0]
    distance = shape_distance(shape, rows, columns, generator.uniform(6, 12))
    image = _blend(np.clip(0.5 - distance, 0, 1), COLOURS[ink], COLOURS[paper])
    return Example(image, f"a {ink} {shape} on a {paper} background", CLASSES.index(shape))


def shape_distance(shape: str, rows: np.ndarray, columns: np.ndarray, size: float) -> np.ndarray:
    """Return an approximate signed distance to a shape's border in pixels, negative inside.

    Args:
        shape: one of `SHAPES`.
        rows: row offsets from the centre; columns: the same for columns.
        columns: column offsets from the centre.
        size: radius in pixels.
    """
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    if shape == "circle":
        return radius - size
    if shape == "square":
        return np.maximum(abs(rows), abs(columns)) - 0.85 * size
    if shape == "triangle":
        return np.maximum(abs(columns) * 0.87 - rows * 0.5, rows) - 0.6 * size
    if shape == "ring":
        return abs(radius - 0.8 * size) - 0.2 * size
    if shape == "cross":
        thick, long = np.minimum(abs(rows), abs(columns)), np.maximum(abs(rows), abs(columns))
        return np.maximum(thick - 0.25 * size, long - size)
    return radius - size * (0.7 + 0.3 * np.cos(5 * angle))


def draw_texture(generator: np.random.Generator) -> Example:
    """Draw stripes, a checkerboard, noise, blobs or layers in two colours."""
    texture = str(generator.choice(list(TEXTURES)))
    ink, paper = _two_colours(generator)
    image = _blend(texture_mask(texture, generator), COLOURS[ink], COLOURS[paper])
    return Example(image, f"{texture} in {ink} and {paper}", CLASSES.index(texture))


def texture_mask(texture: str, generator: np.random.Generator) -> np.ndarray:
    """Draw one of `TEXTURES` as weights in [0, 1], [32, 32]."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + generator.uniform(0, SIDE, (2, 1, 1))
    period = generator.uniform(4, 12)
    if texture.endswith("stripes"):
        along = {"horizontal": rows, "vertical": columns, "diagonal": (rows + columns) * 0.7}[texture.split()[0]]
        return 0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * along / period))
    if texture == "a checkerboard":
        return 0.5 + 0.5 * np.tanh(6 * np.sin(2 * np.pi * rows / period) * np.sin(2 * np.pi * columns / period))
    noise = ndimage.gaussian_filter(generator.normal(size=(SIDE, SIDE)), generator.uniform(1, 3), mode="wrap")
    noise /= noise.std()
    if texture == "smooth noise":
        return np.clip(0.5 + 0.3 * noise, 0, 1)
    if texture == "blobs":
        return 0.5 + 0.5 * np.tanh(3 * (noise - 0.6))
    wavy = rows + 3 * ndimage.gaussian_filter1d(generator.normal(size=SIDE), 4, mode="wrap")[None, :] * 4
    return np.clip(0.5 + 0.4 * np.sin(2 * np.pi * wavy / (2 * period)) + 0.1 * noise, 0, 1)


DRAWERS: "dict[str, Callable[[np.random.Generator], Example]]" = {
    "digit": draw_digit,
    "letter": draw_letter,
    "photograph": draw_photograph,
    "shape": draw_shape,
    "texture": draw_texture,
}
