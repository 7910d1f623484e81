"""Camera images to the model's input size, exactly as in training.

Legend: H W image size.
"""

import numpy as np

from defi_rollout import errors, spec


def resize(image: np.ndarray, target: spec.ImageSpec) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to the model's size by the bundle's rule; equal sizes pass through.

    The rule `pillow_bilinear` is Pillow's BILINEAR filter, which averages over the whole footprint
    of a target pixel when it shrinks (antialiasing).
    """
    if image.shape[:2] == (target.height, target.width):
        return image
    try:
        from PIL import Image
    except ImportError as error:
        raise errors.UsageError(
            f"images of {image.shape[:2]} must be resized to {(target.height, target.width)}",
            "Pillow is missing",
            "pip install pillow, or send images of the model's size",
        ) from error
    size = (target.width, target.height)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
