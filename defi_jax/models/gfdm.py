"""GFDM, the General Forward Dynamics Model: (first frame, text, noisy video) -> clean video.

DeFI section 3.1; spec of the official release: `Step1_GFDM/scripts/train_svd.py`. The network is
SVD's UNet. Its input is the scaled noisy latents beside the first frame's *unscaled* latent,
repeated over time; text enters by cross-attention; fps, motion bucket and noise strength enter as
added time ids.

Letters: B batch, T video frames, h w latent height and width, c latent channels, L D text.
Sigma runs from `sigma_max` (pure noise) down to 0 (data).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array, Float, typed
from defi_jax.diffusion import edm, samplers, schedules
from defi_jax.models import svd_unet


@dataclasses.dataclass(frozen=True, kw_only=True)
class GFDMConfig:
    """Numbers of the forward model.

    Attributes:
        unet: the network.
        num_frames: T.
        fps_id, motion_bucket_id, noise_aug_strength: added time ids seen in training.
        feature_fps_id: fps id used when features are extracted (official: 4, spec defect 5).
        sigma_min, sigma_max, rho: Karras schedule of the video sampler.
        text_copies: how often the text width is repeated to reach `cross_attention_dim`
            (official: 2, CLIP's 512 twice).
        feature_block: up block after which feature extraction stops.
        feature_steps: denoising steps spent on features; the last one is truncated.
        feature_schedule_steps: length of the schedule those steps are the first of.
        feature_noise_scale: 1 draws the noise anew at each call as the official release does,
            0 makes the features deterministic.
    """

    unet: svd_unet.SVDUNetConfig
    num_frames: int = 16
    fps_id: float = 7.0
    feature_fps_id: float = 4.0
    motion_bucket_id: float = 127.0
    noise_aug_strength: float = 0.0
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0
    text_copies: int = 2
    feature_block: int = 1
    feature_steps: int = 1
    feature_schedule_steps: int = 20
    feature_noise_scale: float = 1.0

    def __post_init__(self):
        """Checks what the fields say of each other."""
        if not 1 <= self.feature_steps <= self.feature_schedule_steps:
            raise ValueError(
                f"feature_steps {self.feature_steps} is not in 1..{self.feature_schedule_steps}"
            )
        if not 0 <= self.feature_block < len(self.unet.block_out_channels):
            raise ValueError(f"feature_block {self.feature_block} is not an up block of the UNet")

    def feature_shape(self, side: int) -> tuple[int, int, int, int]:
        """Returns (T, H', W', C') of `GFDM.features` for latents of `side` x `side`."""
        widths = self.unet.block_out_channels
        doublings = min(self.feature_block + 1, len(widths) - 1)  # every up block but the last
        side = side // 2 ** (len(widths) - 1) * 2**doublings
        return self.num_frames, side, side, sum(widths[-1 - self.feature_block :])


class GFDM(nnx.Module):
    """The forward model; latents are scaled (unit variance), conditions unscaled."""

    def __init__(self, config: GFDMConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.unet = svd_unet.SVDUNet(config.unet, dtype=dtype, rngs=rngs)

    @typed
    def velocity(
        self,
        noisy: Float[Array, "B T h w c"],
        sigma: Float[Array, " B"],
        condition: Float[Array, "B h w c"],
        text: Float[Array, "B L D"],
    ) -> Float[Array, "B T h w c"]:
        """Raw network output at noise level `sigma`, in float32."""
        output = self._unet(noisy, sigma, condition, text, fps_id=self.config.fps_id)
        return output.sample.astype(jnp.float32)

    def denoise(self, noisy: Array, sigma: Array, condition: Array, text: Array) -> Array:
        """D(x; sigma): the predicted clean latents, [B, T, h, w, c]."""
        c_skip, c_out, _, _ = edm.VIDEO.scalings(_column(sigma))
        return c_out * self.velocity(noisy, sigma, condition, text) + c_skip * noisy

    def sample(
        self,
        noise: Array,
        condition: Array,
        text: Array,
        *,
        num_steps: int,
        max_guidance: float = 1.0,
    ) -> Array:
        """Draws a video by EDM Euler steps with guidance growing linearly over the frames.

        Args:
            noise: unit noise, float32[B, T, h, w, c].
            condition: unscaled first-frame latent, float32[B, h, w, c].
            text: float[B, L, D].
            num_steps: network evaluations.
            max_guidance: guidance of the last frame; 1 everywhere costs no second branch.

        Returns:
            Scaled latents, float32[B, T, h, w, c].
        """
        config = self.config
        sigmas = schedules.karras(num_steps, config.sigma_min, config.sigma_max, config.rho)

        def denoise(x: Array, sigma: Array) -> Array:
            batch = x.shape[0]
            levels = jnp.broadcast_to(sigma, (batch,))
            if max_guidance == 1.0:
                return self.denoise(x, levels, condition, text)
            pair = self.denoise(
                jnp.concatenate([x, x]),
                jnp.concatenate([levels, levels]),
                jnp.concatenate([condition, condition]),
                jnp.concatenate([jnp.zeros_like(text), text]),
            )
            return samplers.frame_guidance(pair[:batch], pair[batch:], max_guidance)

        start = noise * jnp.sqrt(config.sigma_max**2 + 1)
        return samplers.euler_edm(denoise, start, sigmas)

    def features(self, noise: Array, condition: Array, text: Array) -> Array:
        """What the joint stage sees: activations of the first denoising step(s).

        Args:
            noise: unit noise, float32[B, T, h, w, c]; scaled by `feature_noise_scale`.
            condition: unscaled first-frame latent, float32[B, h, w, c].
            text: float[B, L, D].

        Returns:
            float32[B, T, H', W', C'], up blocks 0..feature_block concatenated on channels.
        """
        config = self.config
        sigmas = schedules.karras(
            config.feature_schedule_steps, config.sigma_min, config.sigma_max, config.rho
        )
        x = noise * config.feature_noise_scale * jnp.sqrt(config.sigma_max**2 + 1)
        batch = x.shape[0]
        if config.feature_steps > 1:
            x = samplers.euler_edm(
                lambda y, sigma: self.denoise(
                    y, jnp.broadcast_to(sigma, (batch,)), condition, text
                ),
                x,
                sigmas[: config.feature_steps],
            )
        output = self._unet(
            x,
            jnp.broadcast_to(sigmas[config.feature_steps - 1], (batch,)),
            condition,
            text,
            fps_id=config.feature_fps_id,
            stop_after_up_block=config.feature_block,
        )
        return svd_unet.up_features(output).astype(jnp.float32)

    def _unet(self, noisy, sigma, condition, text, *, fps_id, stop_after_up_block=None):
        _, _, c_in, c_noise = edm.VIDEO.scalings(sigma)
        scaled = noisy * _column(c_in)
        config, (batch, frames) = self.config, scaled.shape[:2]
        repeated = jnp.broadcast_to(condition[:, None], (batch, frames, *condition.shape[1:]))
        ids = jnp.asarray([fps_id, config.motion_bucket_id, config.noise_aug_strength])
        context = jnp.concatenate([text] * config.text_copies, axis=-1)
        return self.unet(
            jnp.concatenate([scaled, repeated.astype(scaled.dtype)], axis=-1),
            c_noise,
            context,
            jnp.broadcast_to(ids, (batch, 3)),
            stop_after_up_block=stop_after_up_block,
        )


def _column(per_sample: jax.Array) -> jax.Array:
    return per_sample[:, None, None, None, None]
