"""EDM scalings of a denoiser, and the densities its noise levels are drawn from in training.

Direction: sigma is the standard deviation of the noise; it falls from sigma_max (noise) to 0
(data). For clean x0, unit noise eps and data of standard deviation s (Karras et al. 2022, table 1):

    (1) noisy = x0 + sigma * eps
    (2) D(noisy; sigma) = c_out * F(c_in * noisy, c_noise) + c_skip * noisy
    (3) c_skip = s^2 / (sigma^2 + s^2)
    (4) c_out = sigma * s / sqrt(sigma^2 + s^2); the other sign where F predicts the velocity
    (5) c_in = 1 / sqrt(sigma^2 + s^2)
    (6) c_noise = ln(sigma) / 4
    (7) loss = mean( (D - x0)^2 / c_out^2 ) = mean( (F - (x0 - c_skip * noisy) / c_out)^2 )

Spec: method 1.4 (video, s = 1, velocity) and 3.4, 3.5 (actions, s = 0.5). All in float32.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax.array_typing import Array, PRNGKey


@dataclasses.dataclass(frozen=True)
class Preconditioner:
    """Equations (2) to (7) for one data scale.

    Attributes:
        sigma_data: standard deviation s of the data.
        is_velocity: the network predicts v = (eps - sigma * x0) / sqrt(sigma^2 + 1), as SVD does;
            this is (4) with the other sign, for s = 1.
    """

    sigma_data: float
    is_velocity: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: a scale that is not positive, or a velocity with another scale than 1.
        """
        if self.sigma_data <= 0 or (self.is_velocity and self.sigma_data != 1):
            raise ValueError(f"sigma_data {self.sigma_data} must be positive, and 1 for a velocity")

    def scalings(self, sigma: Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns c_skip, c_out, c_in, c_noise, float32, each of the shape of `sigma` (> 0)."""
        sigma = jnp.asarray(sigma, jnp.float32)
        variance = jnp.square(sigma) + self.sigma_data**2
        sign = -1.0 if self.is_velocity else 1.0
        c_skip = self.sigma_data**2 / variance  # (3)
        c_out = sign * self.sigma_data * sigma * jax.lax.rsqrt(variance)  # (4)
        return c_skip, c_out, jax.lax.rsqrt(variance), jnp.log(sigma) / 4  # (5), (6)

    def target(self, x0: Array, noisy: Array, sigma: Array) -> jax.Array:
        """Returns what F should be by (7); `sigma` broadcasts against the arrays."""
        c_skip, c_out, _, _ = self.scalings(sigma)
        return (x0 - c_skip * noisy) / c_out


# SVD's v-prediction on unit-variance latents.
VIDEO = Preconditioner(sigma_data=1.0, is_velocity=True)


def sample_sigma_lognormal(
    rng: PRNGKey, shape: tuple[int, ...], mean: float, std: float
) -> jax.Array:
    """Draws float32 sigmas with ln sigma ~ N(mean, std^2); DeFI's video model has 0.7 and 1.6."""
    return jnp.exp(mean + std * jax.random.normal(rng, shape, jnp.float32))


def sample_sigma_loglogistic(
    rng: PRNGKey,
    shape: tuple[int, ...],
    sigma_data: float,
    sigma_min: float,
    sigma_max: float,
    *,
    scale: float = 0.5,
) -> jax.Array:
    """Draws float32 sigmas, ln sigma logistic around ln sigma_data, in [sigma_min, sigma_max].

    Inverse of the truncated distribution function: u uniform between its values at the two ends,
    sigma = exp(scale * logit(u) + ln sigma_data). DeFI's action model has scale 0.5.
    """
    ends = (np.log([sigma_min, sigma_max]) - np.log(sigma_data)) / scale
    low, high = 1 / (1 + np.exp(-ends))
    uniform = jax.random.uniform(rng, shape, jnp.float32, low, high)
    sigma = jnp.exp(scale * jax.scipy.special.logit(uniform) + np.log(sigma_data))
    # Rounding of u near 1 moves the extreme values by a tenth of a per cent.
    return jnp.clip(sigma, sigma_min, sigma_max)
