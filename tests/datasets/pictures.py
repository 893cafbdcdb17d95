"""Image files of every kind, and what their pixels must become, by numpy alone."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 16
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
"""EXIF 2.3, tag 274: what turns the stored pixels upright."""


def encoded(image, kind="PNG", orientation=None):
    buffer, extra = io.BytesIO(), {}
    if orientation:
        extra["exif"] = Image.Exif()
        extra["exif"][274] = orientation
    image.save(buffer, kind, **extra)
    return buffer.getvalue()


def stored(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def on_white(pixels):
    share = pixels[..., 3:] / 255
    return np.round(pixels[..., :3] * share + 255 * (1 - share)).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(pixels):
    """A PNG of 16 bits a channel, RGB: Pillow writes none."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def drawn(seed, mode):
    """An image of a mode; half of the pixels of P+ and RGB+ are transparent."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + pixels[..., 1])
    if mode == "CMYK":
        return Image.fromarray(pixels, "CMYK")
    image = Image.fromarray(pixels if mode in ("RGBA", "LA") else pixels[..., :3]).convert(mode.removesuffix("+"))
    if mode == "P+":
        image.info["transparency"] = bytes(place % 256 for place in range(256))
    if mode == "RGB+":
        image.info["transparency"] = tuple(pixels[0, 0, :3].tolist())
    return image


def contents(seed, kind, mode, orientation):
    if kind == "text":
        return b"hello"
    if mode == "deep":
        return deep_png(np.random.default_rng(seed).integers(0, 65536, (SIDE, SIDE, 3)))
    data = encoded(drawn(seed, mode), "PNG" if kind == "cut" else kind, None if kind in ("GIF", "BMP") else orientation)
    return data[: len(data) // 2] if kind == "cut" else data


def expected(data, mode, orientation, channels):
    """The pixels that a file is to have, by numpy alone."""
    image = Image.open(io.BytesIO(data))
    if mode == "I;16":
        grey = np.round(np.asarray(image) * (255 / 65535)).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, -1)
    elif mode in ("RGBA", "LA", "P+", "RGB+"):
        pixels = on_white(np.asarray(image.convert("RGBA")))
    else:
        pixels = np.asarray(image.convert("RGB"))
    if channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return UPRIGHT[orientation or 1](pixels)
