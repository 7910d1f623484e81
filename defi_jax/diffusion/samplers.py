"""Samplers as one scan over a precomputed array of decreasing noise levels.

Both integrate the probability flow with x0 = D(x; s) held over the step from s to the next level r:

    (1) Euler (EDM, video): x <- x + (r - s) * (x - x0) / s
    (2) DDIM (= DPM-Solver-1, actions): x <- (r / s) * x + (1 - r / s) * x0

In exact arithmetic (1) and (2) are one step; they are kept apart because each follows the rounding
of its reference (diffusers' `EulerDiscreteScheduler`; the official `sample_ddim`). The state is
float32. The last level may be 0, where both return D. Guidance belongs to the denoiser that is
passed in: `frame_guidance` mixes two of its outputs. Spec: method 1.6, 3.5.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from defi_jax.array_typing import Array

# D(x; sigma) for a scalar sigma > 0: x [B, ...] -> the predicted clean sample, of the same shape.
Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def euler_edm(denoise: Denoise, x_init: Array, sigmas: Array) -> jax.Array:
    """Integrates by (1).

    Args:
        denoise: the denoiser.
        x_init: noise [B, ...], already of the scale of sigmas[0].
        sigmas: decreasing noise levels [n + 1]; makes n calls of `denoise`.

    Returns:
        float32[B, ...] at noise level sigmas[-1].
    """

    def step(x: jax.Array, sigma: jax.Array, following: jax.Array) -> jax.Array:
        return x + (x - denoise(x, sigma)) / sigma * (following - sigma)

    return _scan(step, x_init, sigmas)


def ddim(denoise: Denoise, x_init: Array, sigmas: Array) -> jax.Array:
    """Integrates by (2); arguments and result as in `euler_edm`."""

    def step(x: jax.Array, sigma: jax.Array, following: jax.Array) -> jax.Array:
        ratio = following / sigma
        return ratio * x + (1 - ratio) * denoise(x, sigma)

    return _scan(step, x_init, sigmas)


def frame_guidance(unconditional: Array, conditional: Array, max_guidance: float) -> jax.Array:
    """Classifier-free guidance that grows linearly from 1 on the first frame to `max_guidance`.

    Args:
        unconditional, conditional: outputs [B, T, ...] of a denoiser, or its velocities.
        max_guidance: guidance of the last frame.
    """
    frames = conditional.shape[1]
    guidance = jnp.linspace(1.0, max_guidance, frames)
    guidance = guidance.reshape(frames, *[1] * (conditional.ndim - 2))
    return unconditional + guidance * (conditional - unconditional)


def _scan(
    step: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], x_init: Array, sigmas: Array
) -> jax.Array:
    """Applies `step` over consecutive pairs of levels, in float32."""
    sigmas = jnp.asarray(sigmas, jnp.float32)

    def body(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return step(x, *pair).astype(jnp.float32), None

    return jax.lax.scan(body, jnp.asarray(x_init, jnp.float32), (sigmas[:-1], sigmas[1:]))[0]
