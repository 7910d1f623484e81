"""Pixels of a sample: crop, resize and colour changes, the same for all frames of the sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import PIL.Image

from data_pipelines.formats import image as image_lib

Box = tuple[float, float, float, float]  # left, top, right, bottom in fractions of the image
FULL: Box = (0.0, 0.0, 1.0, 1.0)
CROP_AREA = 0.9  # official
STRENGTHS = (0.2, 0.2, 0.2, 0.05)  # official, of `change_colours`

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
# RGB to YIQ; hue turns the chroma plane I, Q.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


class Draws(Protocol):
    """What a crop and a change of colours are drawn with, such as a `numpy.random.Generator`."""

    def uniform(self, low: float, high: float) -> float:
        """Returns a number between both."""
        ...


@dataclasses.dataclass(frozen=True)
class SharedDraw:
    """One number for everything that is drawn: the `share` of the way from low to high.

    The official augmentation passes one stateless seed to all of its operations, which makes them
    draw the same number (Step2_GIDM/datasets/datasets.py:103-118): crops only slide along the
    diagonal, and a brighter picture always has more contrast.
    """

    share: float

    def uniform(self, low: float, high: float) -> float:
        """See `Draws`."""
        return low + self.share * (high - low)


def resize(frames: Iterable[np.ndarray], size: int, box: Box = FULL) -> np.ndarray:
    """Cuts a box and resizes it to a square, antialiased bilinear (Pillow), in one pass.

    The aspect ratio is not kept, as officially.

    Args:
        frames: k times uint8[H, W, 3].
        size: pixels of a side.
        box: what is cut.

    Returns:
        uint8[k, size, size, 3].
    """
    return np.stack([_resize(frame, (size, size), box) for frame in frames])


def _resize(frame: np.ndarray, target: tuple[int, int], box: Box) -> np.ndarray:
    if box == FULL:
        return image_lib.resize(frame, target)
    height, width = frame.shape[:2]
    pixels = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    image = PIL.Image.fromarray(frame)
    return np.asarray(image.resize(target, PIL.Image.Resampling.BILINEAR, box=pixels))


def random_box(draws: Draws, area: float = CROP_AREA) -> Box:
    """Returns a box of this share of the image's area, its rows and columns independent."""
    side = math.sqrt(area)
    left, top = draws.uniform(0, 1 - side), draws.uniform(0, 1 - side)
    return (left, top, left + side, top + side)


def change_colours(frames: np.ndarray, draws: Draws) -> np.ndarray:
    """Changes colours, equally in all frames, by at most `STRENGTHS`.

    These are a shift in units of the full range, relative changes of contrast and saturation, and a
    turn of the hue in full turns. All four are linear in the colour, hence one 3x3 matrix and an
    offset a sample; contrast turns around the first frame's mean. Clipped once at the end.

    Args:
        frames: uint8[k, H, W, 3].
        draws: what each change is drawn with, in that order.

    Returns:
        uint8[k, H, W, 3].
    """
    brightness, contrast, saturation, hue = STRENGTHS
    shift = 255.0 * draws.uniform(-brightness, brightness)
    contrast = draws.uniform(1 - contrast, 1 + contrast)
    saturation = draws.uniform(1 - saturation, 1 + saturation)
    angle = 2 * math.pi * draws.uniform(-hue, hue)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.linalg.inv(_YIQ) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    grey = np.tile(_LUMA, (3, 1))
    colour = turn @ (saturation * np.eye(3) + (1 - saturation) * grey)
    pixels = frames.astype(np.float32)
    mean = _mean_colour(pixels[0])
    # x -> colour @ (contrast * (x + shift - mean - shift) + mean + shift)
    offset = colour @ ((1 - contrast) * mean + shift)
    matrix = (contrast * colour).astype(np.float32)
    changed = pixels @ matrix.T
    changed += offset.astype(np.float32) + np.float32(0.5)  # to the nearest, once cut off
    np.clip(changed, 0, 255.5, out=changed)
    return changed.astype(np.uint8)


def _mean_colour(image: np.ndarray) -> np.ndarray:
    """Returns float32[3] of float32[H, W, 3]; a product, ten times faster than `mean`."""
    pixels = image.reshape(-1, 3)
    return np.full(len(pixels), 1 / len(pixels), np.float32) @ pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """What all frames of a sample go through: crop and colour when augmenting, then one size.

    Attributes:
        size: pixels of a side.
        augment: whether crop and colours change.
        correlated: draw one number for crop and colours, as officially.
    """

    size: int
    augment: bool = False
    correlated: bool = False

    def __call__(self, frames: Iterable[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Returns uint8[k, size, size, 3] of k times uint8[H, W, 3]."""
        draws = self.draws(rng)
        return self.recolour(self.cut(frames, draws), draws)

    def draws(self, rng: np.random.Generator) -> Draws:
        """Returns what `cut` and then `recolour` draw with for one sample."""
        return SharedDraw(rng.random()) if self.augment and self.correlated else rng

    def cut(self, frames: Iterable[np.ndarray], draws: Draws) -> np.ndarray:
        """Returns uint8[k, size, size, 3] of k times uint8[H, W, 3], colours as they are."""
        return resize(frames, self.size, random_box(draws) if self.augment else FULL)

    def recolour(self, frames: np.ndarray, draws: Draws) -> np.ndarray:
        """Returns uint8[k, H, W, 3] of uint8[k, H, W, 3]."""
        return change_colours(frames, draws) if self.augment else frames
