import colorsys

import numpy as np
import pytest

from data_pipelines import pixels
from data_pipelines.formats import image


def _frames(count=2, height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def test_resize_equals_the_serving_rule():
    frames = _frames()
    resized = pixels.resize(frames, 16)
    np.testing.assert_array_equal(resized[1], image.resize(frames[1], (16, 16)))


def test_box_cuts_before_resizing():
    frames = np.zeros((1, 40, 40, 3), np.uint8)
    frames[:, 20:, 20:] = 200
    resized = pixels.resize(frames, 8, (0.5, 0.5, 1.0, 1.0))
    # The filter's support reaches past the box, hence the first row and column blend.
    np.testing.assert_array_equal(resized[:, 1:, 1:], np.full((1, 7, 7, 3), 200, np.uint8))


def test_crop_keeps_the_area_and_draws_both_offsets():
    rng = np.random.default_rng(0)
    boxes = np.array([pixels.random_box(rng, 0.81) for _ in range(500)])
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], 0.9)
    np.testing.assert_allclose(boxes[:, 3] - boxes[:, 1], 0.9)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert abs(np.corrcoef(boxes[:, 0], boxes[:, 1])[0, 1]) < 0.2


def test_augmentation_is_the_same_for_all_frames_and_differs_by_draw():
    prepare = pixels.Prepare(size=24, augment=True)
    frames = np.repeat(_frames(1), 3, axis=0)
    one = prepare(frames, np.random.default_rng(1))
    np.testing.assert_array_equal(one[0], one[2])
    assert (one != prepare(frames, np.random.default_rng(2))).any()
    np.testing.assert_array_equal(one, prepare(frames, np.random.default_rng(1)))


def test_without_augmentation_only_the_size_changes():
    frames = _frames(2, 24, 24)
    same = pixels.Prepare(size=24)(frames, np.random.default_rng(0))
    np.testing.assert_array_equal(same, frames)


def test_correlated_draws_are_one_number():
    prepare = pixels.Prepare(size=24, augment=True, correlated=True)
    seen = []
    for seed in range(20):
        draws = prepare.draws(np.random.default_rng(seed))
        left, top, right, bottom = pixels.random_box(draws)
        assert left == top and right == bottom
        numbers = (
            left / (1 - 0.9**0.5),
            (draws.uniform(-0.2, 0.2) + 0.2) / 0.4,  # brightness
            (draws.uniform(0.8, 1.2) - 0.8) / 0.4,  # contrast
        )
        np.testing.assert_allclose(numbers, numbers[0], atol=1e-9)
        seen.append(numbers[0])
    assert min(seen) < 0.2 < 0.8 < max(seen)


def test_correlated_augmentation_is_the_same_for_both_frames():
    frames = np.repeat(_frames(1), 2, axis=0)
    images = {}
    for correlated in (True, False):
        prepare = pixels.Prepare(size=24, augment=True, correlated=correlated)
        images[correlated] = prepare(frames, np.random.default_rng(1))
        np.testing.assert_array_equal(images[correlated][0], images[correlated][1])
        np.testing.assert_array_equal(images[correlated], prepare(frames, np.random.default_rng(1)))
    assert (images[True] != images[False]).any()


class _Fixed:
    """Returns given numbers instead of drawing them."""

    def __init__(self, *values):
        self._values = list(values)

    def uniform(self, low, high):
        value = self._values.pop(0)
        assert low <= value <= high
        return value


_NEUTRAL = (0.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, hue


@pytest.fixture
def strong(monkeypatch):
    monkeypatch.setattr(pixels, "STRENGTHS", (1, 1, 1, 0.5))


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        (_NEUTRAL, [[100, 50, 150], [200, 150, 50]]),
        ((0.1, 1.0, 1.0, 0.0), [[126, 76, 176], [226, 176, 76]]),
        # mean (150, 100, 100), half as far from it
        ((0.0, 0.5, 1.0, 0.0), [[125, 75, 125], [175, 125, 75]]),
        # luma 76.35 and 153.55
        ((0.0, 1.0, 0.5, 0.0), [[88, 63, 113], [177, 152, 102]]),
    ],
)
def test_colour_table(strong, draws, expected):
    frames = np.array([[[[100, 50, 150], [200, 150, 50]]]], np.uint8)
    changed = pixels.change_colours(frames, _Fixed(*draws))[0, 0]
    np.testing.assert_allclose(changed, expected, atol=1)


def test_hue_turns_the_colour_and_keeps_grey(strong):
    frames = np.array([[[[200, 60, 60], [90, 90, 90]]]], np.uint8)
    changed = pixels.change_colours(frames, _Fixed(0.0, 1.0, 1.0, 0.25))[0, 0]
    np.testing.assert_allclose(changed[1], 90, atol=1)
    turned = colorsys.rgb_to_hsv(*(changed[0] / 255))[0]
    assert 0.15 < min(turned, 1 - turned) < 0.45
