import numpy as np
import pytest

from defi_jax.diffusion import schedules


def test_karras_values_of_the_video_scheduler():
    sigmas = schedules.karras(20, 0.002, 700.0, 7.0)
    assert sigmas.dtype == np.float32
    assert len(sigmas) == 21
    np.testing.assert_allclose(sigmas[:4], [700, 510.3563, 366.5733, 259.0096], rtol=1e-6)
    np.testing.assert_allclose(0.25 * np.log(sigmas[0]), 1.637770, rtol=1e-6)
    np.testing.assert_allclose(sigmas[-2:], [0.002, 0.0])


def test_exponential_values_of_the_action_evaluation():
    expected = [80, 49.163, 30.212, 18.566, 11.410, 7.0116, 4.3089, 2.6479, 1.6273, 1.0, 0]
    np.testing.assert_allclose(schedules.exponential(10, 1.0, 80.0), expected, rtol=5e-5)


@pytest.mark.parametrize("make", [schedules.karras, schedules.exponential])
def test_levels_fall_and_one_step_starts_at_the_top(make):
    assert np.all(np.diff(make(7, 0.01, 10.0)) < 0)
    np.testing.assert_array_equal(make(1, 0.01, 10.0), np.float32([10, 0]))


@pytest.mark.parametrize("arguments", [(0, 0.1, 1.0), (3, 0.0, 1.0), (3, 2.0, 1.0)])
@pytest.mark.parametrize("make", [schedules.karras, schedules.exponential])
def test_impossible_schedules_are_refused(make, arguments):
    with pytest.raises(ValueError, match="steps from"):
        make(*arguments)
