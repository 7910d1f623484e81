"""Noise levels of the samplers: decreasing from sigma_max to sigma_min, then 0.

With i = 0..N-1 (spec: method 1.6, 3.5):

    (1) Karras: sigma_i = (a + i / (N-1) * (b - a))^rho
        with a = sigma_max^(1/rho), b = sigma_min^(1/rho)
    (2) exponential: ln sigma_i evenly spaced
    (3) sigma_N = 0

Computed in float64 on the host and rounded once, so that the ends are exact.
"""

import numpy as np


def karras(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Returns float32[num_steps + 1] by (1) and (3); SVD has 0.002, 700 and 7."""
    _check(num_steps, sigma_min, sigma_max)
    ends = np.asarray([sigma_max, sigma_min], np.float64) ** (1 / rho)
    return _append_zero(np.linspace(ends[0], ends[1], num_steps) ** rho)


def exponential(num_steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """Returns float32[num_steps + 1] by (2) and (3); DeFI's actions have 0.001 or 1, and 80."""
    _check(num_steps, sigma_min, sigma_max)
    return _append_zero(np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_steps)))


def _check(num_steps: int, sigma_min: float, sigma_max: float) -> None:
    if num_steps < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(
            f"{num_steps} steps from {sigma_max} to {sigma_min}: need steps > 0, max >= min > 0"
        )


def _append_zero(sigmas: np.ndarray) -> np.ndarray:
    return np.append(sigmas, 0.0).astype(np.float32)
