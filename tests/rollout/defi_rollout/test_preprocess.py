import numpy as np
from defi_rollout import preprocess


def test_equal_sizes_pass_through():
    image = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    assert preprocess.resize(image, (6, 8)) is image


def test_shrinking_averages_the_whole_footprint():
    image = np.zeros((32, 32, 3), np.uint8)
    image[::2] = 200  # stripes that plain bilinear sampling would turn into 0 or 200
    small = preprocess.resize(image, (4, 8))
    assert small.shape == (4, 8, 3)
    assert np.abs(small.astype(int) - 100).max() <= 8
