"""Contact sheets: pictures on one sheet, each above its label."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

_SHEET_BACKGROUND = 24
_SHEET_MARGIN = 4
_LABEL_HEIGHT = 14


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str], *, columns: int | None = None
) -> np.ndarray:
    """Lays images out on one picture, row by row, each above its label.

    Args:
        images: uint8[H, W, 3] each; sizes may differ, every cell has the largest.
        labels: one text per image; cut where the cell ends.
        columns: images per row; None makes the sheet roughly square.

    Returns:
        uint8[H', W', 3].

    Raises:
        ValueError: no images, or not one label per image.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"{len(images)} images with {len(labels)} labels")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    cell_height = max(image.shape[0] for image in images) + _LABEL_HEIGHT + _SHEET_MARGIN
    cell_width = max(image.shape[1] for image in images) + _SHEET_MARGIN
    rows = math.ceil(len(images) / columns)
    sheet = np.full(
        (rows * cell_height + _SHEET_MARGIN, columns * cell_width + _SHEET_MARGIN, 3),
        _SHEET_BACKGROUND,
        np.uint8,
    )
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        top = _SHEET_MARGIN + index // columns * cell_height
        left = _SHEET_MARGIN + index % columns * cell_width
        height, width = image.shape[:2]
        sheet[top : top + height, left : left + width] = image
        top += cell_height - _LABEL_HEIGHT - _SHEET_MARGIN
        strip = text_strip(label, cell_width - _SHEET_MARGIN)
        sheet[top : top + _LABEL_HEIGHT, left : left + strip.shape[1]] = strip
    return sheet


def text_width(text: str) -> int:
    """Returns how wide `text_strip` must be to show the whole text, pixels."""
    return math.ceil(PIL.ImageFont.load_default(size=10).getlength(text)) + 4


def text_strip(text: str, width: int) -> np.ndarray:
    """Draws one line of text, cut at the right edge, in the colours of a contact sheet.

    Returns:
        uint8[_LABEL_HEIGHT, width, 3].
    """
    strip = PIL.Image.new("RGB", (width, _LABEL_HEIGHT), (_SHEET_BACKGROUND,) * 3)
    font = PIL.ImageFont.load_default(size=10)
    PIL.ImageDraw.Draw(strip).text((2, 1), text, fill=(230, 230, 230), font=font)
    return np.asarray(strip)
