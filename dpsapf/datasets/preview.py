"""A contact sheet of training images: one row per class, with the class names."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dpsapf.datasets.images import LabelledImages

COLUMNS = 12
TILE = 64  # smallest side of a shown image, in pixels
GAP = 4  # pixels between tiles
FONT_SIZE = 15


def contact_sheet(part: LabelledImages, classes: tuple[str, ...], title: str) -> Image.Image:
    """Draw the first twelve images of every class under a title.

    Args:
        part: images uint8 [N, H, W, 3] with labels.
        classes: class names, in label order.
        title: one line above the rows.

    Returns:
        An RGB picture. Images smaller than 64 pixels are enlarged by a whole factor, without smoothing.
    """
    font = ImageFont.load_default(FONT_SIZE)
    margin = int(max(font.getlength(name) for name in classes)) + 4 * GAP
    side = part.images.shape[1] * max(1, -(-TILE // part.images.shape[1]))
    width = max(margin + COLUMNS * (side + GAP), int(font.getlength(title)) + 4 * GAP)
    sheet = Image.new("RGB", (width, FONT_SIZE + 4 * GAP + len(classes) * (side + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * GAP, GAP), title, "black", font)
    for label, name in enumerate(classes):
        top = FONT_SIZE + 4 * GAP + label * (side + GAP)
        draw.text((2 * GAP, top + side // 2), name, "black", font, anchor="lm")
        for column, index in enumerate(np.flatnonzero(part.labels == label)[:COLUMNS]):
            tile = Image.fromarray(part.images[index]).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (margin + column * (side + GAP), top))
    return sheet
