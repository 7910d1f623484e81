"""Rotations of raw actions."""

from __future__ import annotations

import numpy as np

_GIMBAL_LOCK = 1 - 1e-6  # of |r20|, where roll and yaw turn about one axis


def euler_of_quaternion(quaternions: np.ndarray) -> np.ndarray:
    """Returns angles (x, y, z) with R = Rz Ry Rx, as scipy's extrinsic "xyz".

    In gimbal lock yaw is 0.

    Args:
        quaternions: float[T, 4], (x, y, z, w), of any length but zero.

    Returns:
        float32[T, 3] in radians.

    Raises:
        ValueError: a quaternion is zero.
    """
    lengths = np.linalg.norm(quaternions, axis=-1, keepdims=True)
    if not (lengths > 1e-6).all():
        raise ValueError("a quaternion is zero")
    x, y, z, w = np.moveaxis(np.asarray(quaternions, np.float64) / lengths, -1, 0)
    r01, r02 = 2 * (x * y - w * z), 2 * (x * z + w * y)
    r20 = np.clip(2 * (x * z - w * y), -1, 1)
    locked = np.abs(r20) > _GIMBAL_LOCK
    pitch = -np.arcsin(r20)
    sign = -np.sign(r20)
    roll = np.where(
        locked,
        np.arctan2(sign * r01, sign * r02),
        np.arctan2(2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    yaw = np.where(locked, 0, np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)))
    return np.stack([roll, pitch, yaw], axis=-1).astype(np.float32)
