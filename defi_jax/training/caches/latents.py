"""Latents and text embeddings that were computed before training: by which encoders?

    launch/data.py encode -> `make_encoder` -> data_pipelines.latents.encode -> cache with `facts`
    training -> `check`: the run's own encoders have the same facts, or the cache is stale

Facts are names, numbers, preprocessing and digests of the weights. What a cache depends on beside
them (the episodes) is the loader's to check.
"""

import dataclasses
import json
import logging
import shlex
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.checkpoints import digests
from defi_jax.models import params as params_lib
from defi_jax.objectives import base
from defi_jax.training import step, warm_start

_ENCODERS = ("latents", "gfdm_text")
# Of the encoders' numbers, those that say nothing of what is stored.
_WITHOUT_EFFECT = ("tokenizer_dir", "decode_chunk", "posterior")


def check(config: Any, objective: base.Objective, frozen: Params, loader: batch_lib.Loader) -> None:
    """Refuses latent caches that other encoders made, where the objective reads any.

    Raises:
        UserError: naming what differs, and the command that rebuilds the cache.
    """
    if objective.reads_latents:
        encoders = params_lib.subtree(frozen, "encoders")
        loader.check_latents(encoder_facts(config, objective, encoders), _rebuild_command(config))
        logging.info("latents and text embeddings come from %s", config.data.latents)


def encoder_facts(config: Any, objective: base.Objective, frozen: Params) -> dict[str, Any]:
    """Returns what latents and embeddings of a frame and a text depend on, JSON-able.

    Args:
        config, objective: the experiment.
        frozen: parameters below "encoders/", nested; on several processes global arrays, or numpy
            arrays that are the same on all of them.
    """
    latents, text = (objective.encoders[role] for role in _ENCODERS)
    latent_shape, text_shape = _output_shapes(objective)
    facts = {
        "frames": {"image_size": config.data.image_size, "resize": "pillow_bilinear"},
        "latents": _numbers(latents) | {"weights": _digest(frozen, "latents")},
        "text": _numbers(text)
        | {
            "weights": _digest(frozen, "gfdm_text"),
            "tokenizer": batch_lib.tokenizer_facts(text.tokenizer),
        },
        "latent_shape": latent_shape,
        "text_shape": text_shape,
    }
    return json.loads(json.dumps(facts))  # as it comes back from a file


class Encoder:
    """The frozen encoders of an objective on this process's devices; see `latents.encode`.

    Each process works alone: parameters are copied to its devices, a batch is split over them.

    Attributes:
        facts: what its outputs depend on, from `encoder_facts`.
        posterior: "mode" or "sample", how that of the latents is read.
        image_size: pixels of a side of the frames it takes.
        batch_size: frames or texts it takes at once, over all devices of the process.
    """

    def __init__(
        self,
        config: Any,
        objective: base.Objective,
        params: Params,
        *,
        posterior: str,
        frames_per_device: int,
    ):
        mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("batch",))
        whole = jax.sharding.NamedSharding(mesh, jax.P())
        split = jax.sharding.NamedSharding(mesh, jax.P("batch"))
        latents, self._text = (objective.encoders[role] for role in _ENCODERS)
        self._latents, self._tokenizer = _with_posterior(latents, posterior), self._text.tokenizer
        self._params = jax.device_put(params, whole)
        self._encode_frames = jax.jit(
            self._frames, in_shardings=(whole, split, split), out_shardings=split
        )
        self._encode_texts = jax.jit(
            self._texts, in_shardings=(whole, split, split), out_shardings=split
        )
        self.facts = encoder_facts(config, objective, jax.device_get(params))
        self.posterior = posterior
        self.image_size = config.data.image_size
        self.batch_size = frames_per_device * len(jax.local_devices())

    def frames(self, frames: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """uint8[B, S, S, 3], uint32[B, 2] -> float32[B, h, w, c], scaled."""
        return np.asarray(self._encode_frames(self._params, frames, keys))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> float32[B, L, D]."""
        return np.asarray(self._encode_texts(self._params, *self._tokenizer(texts)))

    def _frames(self, params: Params, frames: jax.Array, keys: jax.Array) -> jax.Array:
        """Each frame's draw follows from its own key, whatever batch it is in."""
        own = params_lib.subtree(params, "latents")
        if self.posterior == "mode":
            return self._latents.encode(own, frames).astype(jnp.float32)

        def sample(frame: jax.Array, words: jax.Array) -> jax.Array:
            rng = jax.random.fold_in(jax.random.key(words[0]), words[1])
            return self._latents.encode(own, frame, rng)

        return jax.vmap(sample)(frames, keys).astype(jnp.float32)

    def _texts(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        own = params_lib.subtree(params, "gfdm_text")
        return self._text.encode(own, ids, mask).tokens.astype(jnp.float32)


def make_encoder(
    config: Any, objective: base.Objective, *, posterior: str, frames_per_device: int
) -> Encoder:
    """Returns the encoders that training with this config has, their weights read.

    `posterior` is "mode", or "sample" where the latent encoder has one.

    Raises:
        UserError: an objective without a latent cache, weights are missing, or no posterior.
        DataError: weights are damaged.
    """
    if {*objective.encoders} != {*_ENCODERS}:
        raise errors.UserError(
            f"{objective.name} has no latent cache", "--config", "give configs/gfdm.py[:preset]"
        )
    params = _initial_encoders(config, objective)
    return Encoder(
        config, objective, params, posterior=posterior, frames_per_device=frames_per_device
    )


def _initial_encoders(config: Any, objective: base.Objective) -> Params:
    """Parameters below "encoders/" at step 0 of a run: from scratch, then from imported weights."""

    def init(rng: jax.Array) -> Params:
        state = step.init_state(rng, objective=objective, config=config)
        return params_lib.subtree(state.frozen, "encoders")  # the rest is never computed

    encoders = params_lib.flatten({"encoders": step.jit_init(init)(jax.random.key(config.seed))})
    starts = [start for start in objective.warm_starts() if start.ours.startswith("encoders/")]
    return params_lib.subtree(
        params_lib.unflatten(warm_start.replace(encoders, starts)), "encoders"
    )


def _with_posterior(latents: Any, posterior: str) -> Any:
    """The latent encoder, reading its posterior as asked for."""
    if posterior == "mode":
        return latents
    if not hasattr(latents, "posterior"):
        raise errors.UserError(
            f"{latents.name} has no posterior to sample", f"--posterior={posterior}", "leave it out"
        )
    return dataclasses.replace(latents, posterior=posterior)


def _output_shapes(objective: base.Objective) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a frame's latents and of a text's embedding."""
    latents, text = (objective.encoders[role] for role in _ENCODERS)
    spec = objective.pixel_batch_spec(1)

    def encode(rng: jax.Array, batch: batch_lib.GFDMBatch) -> tuple[jax.Array, jax.Array]:
        x = latents.encode(latents.init_params(rng), jnp.asarray(batch.video))
        tokens = text.encode(text.init_params(rng), batch.text.ids, batch.text.mask).tokens
        return x, tokens

    x, tokens = jax.eval_shape(encode, jax.random.key(0), spec)
    return x.shape[2:], tokens.shape[1:]


def _numbers(encoder: Any) -> dict[str, Any]:
    """Name and numbers of an encoder, JSON-able."""
    values = {k: v for k, v in dataclasses.asdict(encoder).items() if k not in _WITHOUT_EFFECT}
    if "dtype" in values:
        values["dtype"] = jnp.dtype(values["dtype"]).name
    return {"name": encoder.name} | values


def _digest(frozen: Params, role: str) -> str:
    """Digest of an encoder's weights; of nothing where it has none."""
    own = params_lib.flatten(params_lib.subtree(frozen, role))
    return digests.json_digest(digests.leaf_digests(own))[:16]


def _rebuild_command(config: Any) -> str:
    """What to type to make the caches of a run anew."""
    weights = {f"weights.{name}": source for name, source in config.weights.items() if source}
    encoders = {f"encoders.{name}": value for name, value in config.encoders.items()}
    keys = {
        "data.root": config.data.root,
        "data.mixture": config.data.mixture,
        "data.image_size": config.data.image_size,
        "data.cameras": config.data.cameras,
        "compute_dtype": config.compute_dtype,
        "seed": config.seed,
        **encoders,
        **weights,
    }
    flags = " ".join(shlex.quote(f"--config.{key}={value}") for key, value in keys.items())
    return (
        f"python launch/data.py encode --config=configs/gfdm.py:{config.preset} {flags} "
        f"--output={config.data.latents} --overwrite"
    )
