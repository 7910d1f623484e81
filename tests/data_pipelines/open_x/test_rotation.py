import numpy as np
import pytest

from data_pipelines.open_x import rotation


def _about(axis: int, angle: float) -> np.ndarray:
    """Rotation matrix about one axis, right-handed."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first], matrix[first, second] = np.sin(angle), -np.sin(angle)
    return matrix


def _matrix_of_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """By the definition q v q*, column by column."""
    axis, w = quaternion[:3], quaternion[3]
    columns = [
        v + 2 * w * np.cross(axis, v) + 2 * np.cross(axis, np.cross(axis, v)) for v in np.eye(3)
    ]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(
    ("quaternion", "angles"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([np.sin(0.15), 0, 0, np.cos(0.15)], [0.3, 0, 0]),
        ([0, np.sin(0.15), 0, np.cos(0.15)], [0, 0.3, 0]),
        ([0, 0, np.sin(0.15), np.cos(0.15)], [0, 0, 0.3]),
        ([0, 0, -np.sin(0.15), -np.cos(0.15)], [0, 0, 0.3]),  # the same rotation
        ([0, 0, 5 * np.sin(0.15), 5 * np.cos(0.15)], [0, 0, 0.3]),  # of any length
    ],
)
def test_literal_angles(quaternion, angles):
    found = rotation.euler_of_quaternion(np.array([quaternion], np.float32))
    np.testing.assert_allclose(found, np.float32([angles]), atol=1e-6)


def test_angles_give_back_the_rotation():
    quaternions = np.random.default_rng(0).standard_normal((200, 4))
    quaternions[:20, :] = np.round(quaternions[:20])  # quarter turns, gimbal lock among them
    quaternions[(quaternions == 0).all(axis=1)] = [0, 1, 0, 1]
    quaternions[-1] = [0.5, 0.5, -0.5, 0.5]
    quaternions[-2] = [0, -1, 0, 1]
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    for quaternion, angles in zip(
        quaternions, rotation.euler_of_quaternion(quaternions), strict=True
    ):
        roll, pitch, yaw = angles.astype(np.float64)
        rebuilt = _about(2, yaw) @ _about(1, pitch) @ _about(0, roll)
        np.testing.assert_allclose(rebuilt, _matrix_of_quaternion(quaternion), atol=2e-3)


def test_zero_quaternion_is_refused():
    with pytest.raises(ValueError, match="zero"):
        rotation.euler_of_quaternion(np.zeros((2, 4)))
