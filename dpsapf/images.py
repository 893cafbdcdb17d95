"""Image archives and contact sheets."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dpsapf.errors import UserError
from dpsapf.records import atomic

EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed zip timestamp: equal arrays make equal files


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a compressed ``.npz`` whose bytes depend on the arrays alone; no pickles."""
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), buffer.getvalue(), zipfile.ZIP_DEFLATED)


def save_images(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images uint8 [N, H, W, 3] and labels int64 [N] as ``images`` and ``labels``."""
    save_arrays(path, {"images": images, "labels": labels})


def load_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Read named arrays of an ``.npz`` without pickles.

    Raises:
        UserError: the file is not such an archive, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(str(path), "unreadable archive", f"delete it and run its stage again ({error})") from error


def contact_sheet(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], columns: int = 12, scale: int = 2
) -> Image.Image:
    """Draw one row of images per class, its name on the left.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int64 [N].
        classes: names in label order.
        columns: images per class at most.
        scale: integer zoom (nearest neighbour).
    """
    side, margin = images.shape[1] * scale, 2
    font = ImageFont.load_default(13)
    gutter = 12 + max(int(font.getlength(name)) for name in classes)
    sheet = Image.new("RGB", (gutter + columns * (side + margin), len(classes) * (side + margin)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(classes):
        top = row * (side + margin)
        draw.text((6, top + side // 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images[labels == row][:columns]):
            picture = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (gutter + column * (side + margin), top))
    return sheet
