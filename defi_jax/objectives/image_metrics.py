"""PSNR and SSIM of images in [0, 255], in numpy."""

import numpy as np

_WINDOW = 7  # Wang et al. 2004 with a uniform window, as scikit-image's default
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB per image; inputs [..., H, W, 3], output [...]."""
    error = prediction.astype(np.float64) - target.astype(np.float64)
    mse = np.maximum((error**2).mean(axis=(-3, -2, -1)), 1e-10)
    return 10 * np.log10(255**2 / mse)


def ssim(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Structural similarity per image; inputs [..., H, W, 3] with H, W >= 7, output [...]."""
    x, y = prediction.astype(np.float64), target.astype(np.float64)
    mean_x, mean_y = _box(x), _box(y)
    # The unbiased variance, as in the reference implementation of scikit-image.
    scale = _WINDOW**2 / (_WINDOW**2 - 1)
    var_x = scale * (_box(x * x) - mean_x**2)
    var_y = scale * (_box(y * y) - mean_y**2)
    cov = scale * (_box(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * cov + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).mean(axis=(-3, -2, -1))


def _box(image: np.ndarray) -> np.ndarray:
    """Mean over each full window: [..., H, W, 3] -> [..., H-6, W-6, 3]."""
    for axis in (-3, -2):
        padded = np.insert(np.cumsum(image, axis=axis), 0, 0, axis=axis)
        size = padded.shape[axis]
        upper = np.take(padded, range(_WINDOW, size), axis=axis)
        lower = np.take(padded, range(size - _WINDOW), axis=axis)
        image = (upper - lower) / _WINDOW
    return image
