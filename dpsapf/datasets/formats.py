"""Formats of images, archives and tables that are not read: errors name them, known by suffix or first bytes."""

import typing
from pathlib import PurePosixPath

CONVERT = "is not read: convert it to PNG, for example with `magick FILE FILE.png`"
UNPACK = "is not read: unpack it into class folders, or make a .zip of them"
SHARDS = f"{UNPACK}; of a WebDataset, unpack all shards and name the files' labels in a CSV (key labels)"
EXTRACT = "is not read: write its images as PNG or JPEG files into class folders, or name their labels in a CSV (key labels)"


class Format(typing.NamedTuple):
    """A format that is not read.

    Attributes:
        name: what errors call it.
        remedy: what to do with such a file.
        suffixes: of its files, in small letters.
        heads: bytes that its files have, each with its place.
    """

    name: str
    remedy: str
    suffixes: tuple[str, ...]
    heads: tuple[tuple[int, bytes], ...] = ()


FORMATS = (
    Format("WebP", CONVERT, (".webp",), ((8, b"WEBP"),)),
    Format("TIFF", CONVERT, (".tif", ".tiff"), ((0, b"II*\0"), (0, b"MM\0*"))),
    Format("GIF", CONVERT, (".gif",), ((0, b"GIF8"),)),
    Format("BMP", CONVERT, (".bmp",), ((0, b"BM"),)),
    Format("HEIC", CONVERT, (".heic", ".heif"), ((4, b"ftyphei"), (4, b"ftypmif1"))),
    Format("AVIF", CONVERT, (".avif",), ((4, b"ftypavi"),)),
    Format("DICOM", CONVERT, (".dcm",), ((128, b"DICM"),)),
    Format("Parquet", EXTRACT, (".parquet",), ((0, b"PAR1"),)),
    Format("HDF5", EXTRACT, (".h5", ".hdf5"), ((0, b"\x89HDF"),)),
    Format("NumPy", EXTRACT, (".npy", ".npz"), ((0, b"\x93NUMPY"),)),
    Format("WebDataset or other .tar", SHARDS, (".tar", ".tgz", ".gz", ".xz", ".zst"), ((257, b"ustar"),)),
    Format("7z or RAR", UNPACK, (".7z", ".rar"), ((0, b"7z\xbc\xaf"), (0, b"Rar!"))),
    Format(".zip in the source", UNPACK, (".zip",), ((0, b"PK\3\4"),)),
)


def named(file: str) -> Format | None:
    """Return the format of a file that is not read, by the file's name; None: none that is known."""
    suffix = PurePosixPath(file).suffix.lower()
    return next((known for known in FORMATS if suffix in known.suffixes), None)


def recognised(data: bytes) -> Format | None:
    """Return the format of a file that is not read, by the file's bytes; None: none that is known."""
    return next((known for known in FORMATS if any(data.startswith(head, place) for place, head in known.heads)), None)
