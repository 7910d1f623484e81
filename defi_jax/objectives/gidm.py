"""GIDM objective: latent actions that explain how the second frame follows from the first.

With frozen features f0, f1 of a frame pair (official `genie/modules/lam.py`):

    (1) z_e = encoder(f0, f1, text);  z_q = nearest code of z_e, straight-through
    (2) f1' = decoder(z_q, f0, text)
    (3) loss = mean (f1' - f1)^2 + codebook loss + w * commitment loss

Dead codes are re-seeded from recent encoder outputs every `restart_every` steps. Actions never
enter the loss; a linear probe reads them from the latent actions: what have the codes learnt?
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax import batch as batch_lib
from defi_jax.array_typing import Params, PRNGKey
from defi_jax.models import gidm, vector_quantizer
from defi_jax.models import params as params_lib
from defi_jax.objectives import base, host, probe, setup


class GIDMObjective(base.Objective):
    """Stage 2; parameters under "gidm" train, those under "encoders" are frozen."""

    name = "gidm"

    def __init__(self, config: Any):
        self.config = config
        self.features = setup.feature_encoder(config)
        self.text = setup.text_encoder(config, "gidm")
        self.model_config = setup.gidm_config(config.model.to_dict(), self.features, self.text)
        dtype = jnp.dtype(config.compute_dtype)
        self.encoders = {"features": self.features, "gidm_text": self.text}
        self.modules = {"gidm": lambda rngs: gidm.GIDM(self.model_config, dtype=dtype, rngs=rngs)}
        self._forward = jax.jit(self._evaluate_batch)

    def batch_spec(self, batch_size: int) -> batch_lib.GIDMBatch:
        """Abstract batch; see base.Objective."""
        data = self.config.data
        size = (2, data.image_size, data.image_size, 3)
        return batch_lib.GIDMBatch(
            frames=jax.ShapeDtypeStruct((batch_size, *size), jnp.uint8),
            text=batch_lib.tokens_spec(batch_size, self.text.tokenizer.text.length),
            action=jax.ShapeDtypeStruct((batch_size, data.action_dim), jnp.float32),
            action_mask=jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
        )

    def init_extra(self) -> dict[str, jax.Array]:
        """Codebook usage since the last restart, and recent encoder outputs to restart from."""
        codes, width = self.model_config.codebook_size, self.model_config.latent_dim
        return {"usage": jnp.zeros(codes), "recent_z_e": jnp.zeros((codes, width))}

    def loss_fn(
        self, params: Params, extra: dict, batch: batch_lib.GIDMBatch, rng: PRNGKey
    ) -> tuple[jax.Array, base.LossOutput]:
        """Equation (3)."""
        del rng
        output = self._run(params, batch, self.encode(params, "features", batch.frames))
        loss = (
            output.recon_loss
            + output.codebook_loss
            + self.config.commitment_weight * output.commitment_loss
        )
        metrics = {
            "loss": loss,
            "reconstruction": output.recon_loss,
            "commitment": output.commitment_loss,
        }
        if output.indices is not None:
            used = vector_quantizer.usage_increment(output.indices, len(extra["usage"]))
            metrics["codes_in_batch"] = jnp.sum(used > 0)
            extra = {
                "usage": extra["usage"] + used,
                "recent_z_e": self._recent(extra["recent_z_e"], output.z_e),
            }
        return loss, base.LossOutput(metrics=metrics, extra=extra)

    def after_step(
        self, params: Params, extra: dict, step: jax.Array, rng: PRNGKey
    ) -> tuple[Params, dict]:
        """Re-seeds dead codes every `restart_every` steps and counts anew."""
        every = self.config.restart_every
        if not every or self.model_config.quantizer != "vq":
            return params, extra
        flat = params_lib.flatten(params)
        path = "gidm/latent_action/vq/codebook"
        due = step % every == 0
        restarted = vector_quantizer.restart_dead_codes(
            flat[path],
            extra["usage"],
            extra["recent_z_e"],
            rng,
            copy_codes=self.config.restart_by_copy,
        )
        flat[path] = jnp.where(due, restarted, flat[path])
        usage = jnp.where(due, 0.0, extra["usage"])
        return params_lib.unflatten(flat), {**extra, "usage": usage}

    def evaluate(self, params: Params, batches: Iterable[Any], rng: PRNGKey) -> base.EvalOutput:
        """Reconstruction, code usage and the action probe on held-out pairs."""
        del rng
        found = [host.fetch((batch, *self._forward(params, batch))) for batch in batches]
        pairs, outputs, copy_losses = zip(*found, strict=True)
        latents = np.concatenate([o.z_q.reshape(len(o.z_q), -1) for o in outputs])
        actions = np.concatenate([batch.action for batch in pairs])
        known = np.concatenate([batch.action_mask for batch in pairs])
        frames = np.concatenate([batch.frames for batch in pairs])
        scalars = {
            "reconstruction": float(np.mean([o.recon_loss for o in outputs])),
            "reconstruction_copy": float(np.mean(copy_losses)),
        }
        if known.sum() >= probe.MIN_EXAMPLES:
            scalars |= probe.linear_probe(latents[known], actions[known])
        if outputs[0].indices is None:
            return base.EvalOutput(scalars=scalars)
        indices = np.concatenate([o.indices for o in outputs])
        scalars |= code_statistics(indices, self.model_config.codebook_size)
        picture = _pairs_by_code(frames, indices[:, 0], self.config.eval.pictures)
        return base.EvalOutput(scalars=scalars, images={"pairs_by_code": picture})

    def warm_starts(self) -> list[base.WarmStart]:
        """The frozen encoders' weights, and another GIDM run when `init.gidm` names one."""
        return [*super().warm_starts(), *setup.stage(self.config, "gidm", "gidm", "gidm")]

    def _run(
        self, params: Params, batch: batch_lib.GIDMBatch, features: jax.Array
    ) -> gidm.GIDMOutput:
        text = self.encode_text(params, "gidm", batch.text)
        return self.apply(params, "gidm", "__call__", features, text.tokens, text.mask)

    def _evaluate_batch(
        self, params: Params, batch: batch_lib.GIDMBatch
    ) -> tuple[gidm.GIDMOutput, jax.Array]:
        """The model's output, and the reconstruction loss of predicting no change."""
        features = self.encode(params, "features", batch.frames)
        copy_loss = jnp.mean(jnp.square(features[:, 1] - features[:, 0]))
        return self._run(params, batch, features), copy_loss

    @staticmethod
    def _recent(recent: jax.Array, z_e: jax.Array) -> jax.Array:
        """Keeps the newest encoder outputs, evenly over the batch, as many as there are codes."""
        flat = jax.lax.stop_gradient(z_e).reshape(-1, z_e.shape[-1])
        wanted = min(len(recent), len(flat))
        newest = flat[:: len(flat) // wanted][:wanted]
        return jnp.concatenate([newest, recent])[: len(recent)]


def code_statistics(indices: np.ndarray, codebook_size: int) -> dict[str, float]:
    """Returns the share of codes used and the perplexity of int[N, K] code indices."""
    counts = np.bincount(indices.reshape(-1), minlength=codebook_size)
    share = counts / counts.sum()
    entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
    return {
        "code_usage": float((counts > 0).mean()),
        "code_perplexity": float(np.exp(entropy)),
    }


def _pairs_by_code(frames: np.ndarray, codes: np.ndarray, per_code: int) -> np.ndarray:
    """One row per used code of the first token: up to `per_code` frame pairs, side by side."""
    height, width = frames.shape[2:4]
    rows = []
    for code in np.unique(codes):
        chosen = frames[codes == code][:per_code]
        row = np.full((height, per_code * (2 * width + 4), 3), 255, np.uint8)
        for i, (before, after) in enumerate(chosen):
            left = i * (2 * width + 4)
            row[:, left : left + width] = before
            row[:, left + width : left + 2 * width] = after
        rows += [row, np.full((4, row.shape[1], 3), 255, np.uint8)]
    return np.concatenate(rows)
