import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax.diffusion import edm

ACTIONS = edm.Preconditioner(sigma_data=0.5)
SIGMAS = np.float32([0.01, 0.5, 1.0, 80.0])


def _noised(sigma):
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 7))
    return x0, eps, x0 + sigma * eps


def test_scalings_are_the_closed_forms_of_the_specification():
    square = SIGMAS**2
    expected = {
        edm.VIDEO: (1 / (square + 1), -SIGMAS / np.sqrt(square + 1), 1 / np.sqrt(square + 1)),
        ACTIONS: (
            0.25 / (square + 0.25),
            0.5 * SIGMAS / np.sqrt(square + 0.25),
            1 / np.sqrt(square + 0.25),
        ),
    }
    for preconditioner, values in expected.items():
        *scalings, c_noise = preconditioner.scalings(SIGMAS)
        np.testing.assert_allclose(scalings, values, rtol=1e-6)
        np.testing.assert_allclose(c_noise, np.log(SIGMAS) / 4, rtol=1e-6)


@pytest.mark.parametrize("preconditioner", [edm.VIDEO, ACTIONS])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_denoiser_returns_clean_data_when_the_network_returns_its_target(preconditioner, sigma):
    x0, _, noisy = _noised(sigma)
    c_skip, c_out, _, _ = preconditioner.scalings(sigma)
    denoised = c_out * preconditioner.target(x0, noisy, sigma) + c_skip * noisy
    np.testing.assert_allclose(denoised, x0, atol=2e-5)


def test_video_target_is_the_velocity():
    x0, eps, noisy = _noised(3.0)
    velocity = (eps - 3.0 * x0) / np.sqrt(10.0)
    np.testing.assert_allclose(edm.VIDEO.target(x0, noisy, 3.0), velocity, atol=1e-5)


def test_target_has_unit_variance_at_every_noise_level():
    for sigma in (0.02, 0.5, 50.0):
        x0, eps = 0.5 * jax.random.normal(jax.random.key(1), (2, 20_000))
        target = ACTIONS.target(x0, x0 + sigma * 2 * eps, sigma)
        assert abs(float(jnp.std(target)) - 1) < 0.03


def test_velocity_needs_unit_data():
    with pytest.raises(ValueError, match="sigma_data"):
        edm.Preconditioner(sigma_data=0.5, is_velocity=True)


def test_lognormal_moments():
    logs = np.log(edm.sample_sigma_lognormal(jax.random.key(2), (40_000,), 0.7, 1.6))
    assert abs(logs.mean() - 0.7) < 0.03
    assert abs(logs.std() - 1.6) < 0.03


def test_loglogistic_quantiles_are_those_of_the_specification():
    sigmas = np.asarray(
        edm.sample_sigma_loglogistic(jax.random.key(3), (200_000,), 0.5, 0.001, 80.0)
    )
    quantiles = np.quantile(sigmas, [0.01, 0.25, 0.5, 0.75, 0.99])
    np.testing.assert_allclose(quantiles, [0.050, 0.289, 0.500, 0.866, 4.97], rtol=0.04)


def test_loglogistic_is_cut_at_both_ends():
    sigmas = edm.sample_sigma_loglogistic(jax.random.key(4), (20_000,), 0.5, 0.3, 0.9)
    assert float(sigmas.min()) >= 0.3
    assert float(sigmas.max()) <= 0.9
    # Cut, not clipped: no mass piles up at the ends.
    assert len(np.unique(sigmas)) > 19_000
