"""Images to the model's input size: the one rule of training and serving.

Legend: H W image size.
"""

import numpy as np

from defi_rollout import errors


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [H, W, 3] by the rule `pillow_bilinear`; equal sizes pass through.

    Pillow's BILINEAR filter averages over the whole footprint of a target pixel when it shrinks
    (antialiasing). The aspect ratio is not kept.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) wanted.

    Raises:
        UserError: Pillow is not installed.
    """
    if image.shape[:2] == size:
        return image
    what = f"images of {image.shape[:2]} must be resized to {size}"
    fix = "pip install pillow, or send images of the model's size"
    with errors.UserError.instead_of(ImportError, what, "Pillow is missing", fix):
        from PIL import Image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)
