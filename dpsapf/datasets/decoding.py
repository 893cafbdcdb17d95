"""One PNG or JPEG file becomes a square of pixels, upright, or is refused with what to do about it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dpsapf.datasets.formats import recognised
from dpsapf.datasets.images import check_side
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError

MODES = {1: "L", 3: "RGB"}
WHITE = 255
CONVERSIONS = {
    "1": "nothing is lost",
    "L": "nothing is lost",
    "P": "nothing is lost but colours where channels is 1",
    "RGB": "colours are lost",
    "LA": "what is transparent becomes white",
    "RGBA": "what is transparent becomes white",
    "CMYK": "print colours become RGB by Pillow's formula, without their colour profile",
    "I;16": "65,536 grey levels become 256, and 65,535 becomes 255",
}
"""Modes that ``convert: true`` turns into ``channels``, and what is lost."""
TRANSPARENT = ("1", "L", "P", "RGB", "LA", "RGBA")  # modes of which transparent pixels are known
MAX_SIDE = 8192  # pixels; a larger image is refused undecoded
MAX_ENLARGEMENT = 2  # an image needs at least 1/2 of the resolution on its shorter side (CelebA: 178 for 256)
DEPTH_BYTE = 24  # of a PNG file: bits of a channel


def decode(data: bytes, where: str, entry: DatasetEntry, *, exact: bool = False, on_white: bool = True) -> np.ndarray:
    """Decode one PNG or JPEG file, turn it as its EXIF orientation says, crop it to its central square and resize it (Lanczos).

    Args:
        data: the file's bytes.
        where: the file's name, for errors.
        entry: gives ``resolution`` in pixels and ``channels``; its ``convert`` says whether other modes are converted.
        exact: refuse an image that would have to be cropped or resized.
        on_white: what is transparent becomes white; else an alpha channel is left off, as published datasets are read.

    Returns:
        uint8 [resolution, resolution, channels] in [0, 255].

    Raises:
        UserError: not an image, too small, too large, animated, or of another mode than ``channels`` says.
    """
    with _undecodable(where, data):
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    if exact:
        check_side(where, image.size, entry.resolution)
    _check_header(image, data, where, entry)
    with _undecodable(where, data):
        image.load()
    _turn_upright(image, where)
    square = _central_square(converted(image, entry.channels, on_white=on_white)).resize(
        (entry.resolution, entry.resolution), Image.Resampling.LANCZOS
    )
    return np.asarray(square).reshape(entry.resolution, entry.resolution, entry.channels)


def converted(image: Image.Image, channels: int, *, on_white: bool = True) -> Image.Image:
    """Convert a loaded image of a mode of `CONVERSIONS` to grey (``channels`` 1) or RGB (3), 8 bits a channel.

    CMYK goes by Pillow's formula, 16 bits are scaled and rounded exactly, and transparent pixels are laid on white if
    ``on_white`` says so.
    """
    if image.mode == "I;16":
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257, and halves do not occur
    elif image.mode == "CMYK":
        image = image.convert("RGB")
    elif on_white and image.has_transparency_data:
        image = _laid_on_white(image)
    return image.convert(MODES[channels])


def _laid_on_white(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image.convert("RGBA")).astype(np.uint32)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    return Image.fromarray(((colour * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8))


def _turn_upright(image: Image.Image, where: str) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # damaged EXIF may raise anything
        remedy = f"its EXIF data cannot be read, so that it may lie on its side: save it again without them ({error})"
        raise UserError(where, "unreadable EXIF", remedy) from error


def _central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@contextmanager
def _undecodable(where: str, data: bytes) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if known := recognised(data):
            raise UserError(where, f"a {known.name} file, whatever its name", known.remedy) from error
        reason = "not a PNG or JPEG" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(where, f"undecodable ({reason})", "replace or remove this image") from error


def _check_header(image: Image.Image, data: bytes, where: str, entry: DatasetEntry) -> None:
    _check_mode(image, data, where, entry)
    least = -(-entry.resolution // MAX_ENLARGEMENT)
    if min(image.size) < least or max(image.size) > MAX_SIDE:
        remedy = f"sides must be {least} to {MAX_SIDE} pixels for resolution {entry.resolution}"
        raise UserError(where, f"{image.width} x {image.height}", remedy)
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise UserError(where, f"{image.n_frames} frames", "is animated: save the frame that you want as a file of its own")


def _check_mode(image: Image.Image, data: bytes, where: str, entry: DatasetEntry) -> None:
    """Refuse a mode that is not ``channels``' own, unless it may be converted.

    Raises:
        UserError: says what converts it, and what is lost.
    """
    wanted, mode, transparent = MODES[entry.channels], image.mode, image.has_transparency_data
    told = f"mode {mode}" + (" with transparent pixels" if transparent and "A" not in mode else "")
    if image.format == "PNG" and data[DEPTH_BYTE] == 16 and mode != "I;16":
        remedy = "has 16 bits a channel, of which 8 would be cut off: save it with 8, for example `magick FILE -depth 8 FILE`"
        raise UserError(where, f"{told}, 16 bits", remedy)
    if mode not in CONVERSIONS or (transparent and mode not in TRANSPARENT):
        raise UserError(where, told, f"cannot be converted without loss: save it as 8-bit {wanted}")
    if (mode != wanted or transparent) and not entry.convert:
        lost = CONVERSIONS["RGBA" if transparent else mode]
        remedy = f"every file must be of mode {wanted} for channels = {entry.channels}: set convert: true ({lost}), or convert it"
        raise UserError(where, told, remedy)
