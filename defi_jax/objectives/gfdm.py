"""GFDM objective: denoise video latents given the first frame and the instruction.

With clean latents x, unit noise eps and ln sigma ~ N(m, s^2) (official `train_svd.py:393-458`):

    (1) noisy = x + sigma * eps
    (2) D = c_out * UNet(c_in * noisy, c_noise, first frame, text) + c_skip * noisy
    (3) loss = mean( (sigma^2 + 1) / sigma^2 * (D - x)^2 )

As the weight of (3) is 1 / c_out^2, the loss is the mean squared error between the raw network
output and the velocity (x - c_skip * noisy) / c_out, which is how it is computed.
Text is replaced by zeros with probability `text_dropout`, the image condition never.

With `data.latents` latents and text features come with the batch, from a latent cache; evaluation
has pixels all the same. Encoders' outputs are what they are in both cases: scaled latents, of which
the first frame's is unscaled for the condition.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.array_typing import Params, PRNGKey
from defi_jax.diffusion import edm
from defi_jax.models import gfdm
from defi_jax.models import params as params_lib
from defi_jax.objectives import base, host, image_metrics, setup


class GFDMObjective(base.Objective):
    """Stage 1; parameters under "gfdm" train, those under "encoders" are frozen."""

    name = "gfdm"

    def __init__(self, config: Any):
        if config.data.latents and config.data.augment:
            raise errors.UserError(
                "latents computed once cannot be augmented",
                "--config.data.augment=True",
                "give --config.data.augment=False, or leave --config.data.latents out",
            )
        self.config = config
        self.reads_latents = bool(config.data.latents)
        self.latents = setup.latent_encoder(config)
        self.text = setup.text_encoder(config, "gfdm")
        self.model_config = setup.gfdm_config(config.model, self.latents, self.text)
        dtype = jnp.dtype(config.compute_dtype)
        self.encoders = {"latents": self.latents, "gfdm_text": self.text}
        self.modules = {"gfdm": lambda rngs: gfdm.GFDM(self.model_config, dtype=dtype, rngs=rngs)}
        self._sample = jax.jit(self._predict)

    def batch_spec(self, batch_size: int) -> batch_lib.GFDMBatch:
        """Abstract batch, with latents instead of video where there is a cache."""
        spec = self.pixel_batch_spec(batch_size)
        if not self.reads_latents:
            return spec
        frozen = jax.eval_shape(self.init_frozen, jax.random.key(0))
        outputs = jax.eval_shape(self._encode, frozen, spec.video, spec.text)
        x, text = (jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in outputs)
        return dataclasses.replace(spec, video=None, latents=x, text_features=text)

    def pixel_batch_spec(self, batch_size: int) -> batch_lib.GFDMBatch:
        """Abstract batch with video."""
        data = self.config.data
        size = (data.num_frames, data.image_size, data.image_size, 3)
        return batch_lib.GFDMBatch(
            video=jax.ShapeDtypeStruct((batch_size, *size), jnp.uint8),
            text=batch_lib.tokens_spec(batch_size, self.text.tokenizer.text.length),
        )

    def loss_fn(
        self, params: Params, extra: dict, batch: batch_lib.GFDMBatch, rng: PRNGKey
    ) -> tuple[jax.Array, base.LossOutput]:
        """Equation (3)."""
        sigma_rng, eps_rng, drop_rng = jax.random.split(rng, 3)
        x, condition, text = self._inputs(params, batch)
        keep = jax.random.bernoulli(drop_rng, 1 - self.config.text_dropout, (len(x), 1, 1))
        text = jnp.where(keep, text, 0)

        sigma = edm.sample_sigma_lognormal(
            sigma_rng, (len(x),), self.config.sigma_log_mean, self.config.sigma_log_std
        )
        column = sigma[:, None, None, None, None]
        noisy = x + column * jax.random.normal(eps_rng, x.shape)  # (1)
        target = edm.VIDEO.target(x, noisy, column)
        velocity = self.apply(params, "gfdm", "velocity", noisy, sigma, condition, text)
        error = jnp.mean(jnp.square(velocity - target), axis=(1, 2, 3, 4))  # (3)
        loss = jnp.mean(error)
        return loss, base.LossOutput(metrics={"loss": loss}, extra=extra)

    def evaluate(self, params: Params, batches: Iterable[Any], rng: PRNGKey) -> base.EvalOutput:
        """Predicts held-out futures: PSNR and SSIM of frames 1.., beside repeating frame 0."""
        scores: dict[str, list[np.ndarray]] = {"psnr": [], "ssim": [], "psnr_repeat": []}
        rows: list[np.ndarray] = []
        for index, batch in enumerate(batches):
            predicted = self._sample(params, batch, jax.random.fold_in(rng, index))
            predicted, true = host.fetch((predicted, batch.video))
            still = np.broadcast_to(true[:, :1], true.shape)
            scores["psnr"].append(image_metrics.psnr(predicted[:, 1:], true[:, 1:]))
            scores["ssim"].append(image_metrics.ssim(predicted[:, 1:], true[:, 1:]))
            scores["psnr_repeat"].append(image_metrics.psnr(still[:, 1:], true[:, 1:]))
            rows += [np.stack(pair) for pair in zip(true, predicted, strict=True)]
        scalars = {name: float(np.mean(np.concatenate(v))) for name, v in scores.items()}
        pictures = rows[: self.config.eval.pictures]
        return base.EvalOutput(
            scalars=scalars,
            images={"true_above_predicted": _grid(pictures)},
            videos={"true_left_predicted_right": _side_by_side(pictures)},
        )

    def warm_starts(self) -> list[base.WarmStart]:
        """The frozen encoders' weights, and another GFDM run when `init.gfdm` names one."""
        return [
            *super().warm_starts(),
            *setup.stage(self.config, "gfdm", "gfdm", "gfdm", self.model_config.unet),
        ]

    def _inputs(self, params: Params, batch: batch_lib.GFDMBatch):
        """Returns scaled latents, the unscaled first latent and text features."""
        x, text = batch.latents, batch.text_features
        if x is None or text is None:
            x, text = self._encode(params, batch.video, batch.text)
        return x, x[:, 0] / self.latents.scale, text

    def _encode(self, params: Params, video: Any, tokens: batch_lib.TextTokens):
        """Returns scaled latents and text features."""
        x = self.encode(params, "latents", video)
        return x, self.encode_text(params, "gfdm", tokens).tokens

    def _predict(self, params: Params, batch: batch_lib.GFDMBatch, rng: PRNGKey) -> jax.Array:
        """Predicted video, uint8[B, T, H, W, 3]."""
        x, condition, text = self._inputs(params, batch)
        model = params_lib.bind(self.modules["gfdm"], params["gfdm"])
        latents = model.sample(
            jax.random.normal(rng, x.shape),
            condition,
            text,
            num_steps=self.config.eval.sample_steps,
            max_guidance=self.config.eval.max_guidance,
        )
        return self.latents.decode(params_lib.subtree(params, "encoders", "latents"), latents)


def _grid(pairs: list[np.ndarray]) -> np.ndarray:
    """[2, T, H, W, 3] each -> one picture: true row above predicted row, clips below each other."""
    return np.concatenate(
        [np.concatenate(list(row), axis=1) for pair in pairs for row in pair], axis=0
    )


def _side_by_side(pairs: list[np.ndarray]) -> np.ndarray:
    """[2, T, H, W, 3] each -> uint8[T, clips * H, 2 * W, 3]."""
    return np.concatenate([np.concatenate([p[0], p[1]], axis=2) for p in pairs], axis=1)
