import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax.diffusion import samplers, schedules

SAMPLERS = [samplers.euler_edm, samplers.ddim]
SIGMAS = schedules.karras(12, 0.01, 50.0)


def _gaussian_denoiser(mean, std):
    """The exact denoiser of N(mean, std^2) data."""
    return lambda x, sigma: (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_perfect_denoiser_gives_the_data_in_one_cycle(sampler):
    x0, noise = jax.random.normal(jax.random.key(0), (2, 4, 3))
    found = sampler(lambda x, sigma: x0, x0 + SIGMAS[0] * noise, SIGMAS)
    np.testing.assert_allclose(found, x0, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stopping_early_leaves_the_noise_of_that_level(sampler):
    x0, noise = jax.random.normal(jax.random.key(1), (2, 4, 3))
    found = sampler(lambda x, sigma: x0, x0 + SIGMAS[0] * noise, SIGMAS[:6])
    np.testing.assert_allclose(found, x0 + SIGMAS[5] * noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_steps_reach_the_data_distribution(sampler):
    sigmas = schedules.karras(200, 0.002, 80.0)
    start = 80.0 * jax.random.normal(jax.random.key(2), (20_000,))
    found = sampler(_gaussian_denoiser(2.0, 0.5), start, sigmas)
    assert abs(float(found.mean()) - 2.0) < 0.03
    assert abs(float(found.std()) - 0.5) < 0.03


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_step_matches_its_hand_written_form(sampler):
    def denoise(x, sigma):
        return jnp.tanh(x) / (1 + sigma)

    x = np.float32([[0.3, -2.0]])
    expected = x
    for sigma, following in ((4.0, 1.0), (1.0, 0.0)):
        slope = (expected - np.tanh(expected) / (1 + sigma)) / sigma
        expected = expected + slope * (following - sigma)
    np.testing.assert_allclose(sampler(denoise, x, [4.0, 1.0, 0.0]), expected, atol=1e-6)


def test_denoiser_is_traced_once_and_state_is_float32():
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return x.astype(jnp.bfloat16)

    found = samplers.ddim(denoise, jnp.ones((2, 3), jnp.bfloat16), SIGMAS)
    assert found.dtype == jnp.float32
    assert len(calls) == 1


def test_guidance_grows_from_one_over_the_frames():
    unconditional, conditional = np.zeros((1, 4, 2)), np.ones((1, 4, 2))
    mixed = samplers.frame_guidance(unconditional, conditional, 7.0)
    np.testing.assert_allclose(mixed[0, :, 0], [1, 3, 5, 7])
    np.testing.assert_allclose(samplers.frame_guidance(unconditional, conditional, 1.0), 1.0)
