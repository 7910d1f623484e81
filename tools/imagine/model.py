"""Predicted futures: the video model of a checkpoint or bundle, one picture, one instruction.

    (given frame, text, seed) -> EDM Euler sampling of latents -> uint8[T, S, S, 3]

A GFDM checkpoint, a joint checkpoint and a bundle all hold the whole video model, its encoders and
the numbers to rebuild it, so that nothing beside them is needed. What comes out at seed s does not
depend on the other seeds asked for.

Letters: T frames, S image side, h w c latent height, width, channels.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors.numpy
from defi_rollout import bundle as rollout_bundle
from defi_rollout import tokenizers as rollout_tokenizers

from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.checkpoints import manager
from defi_jax.models import gfdm
from defi_jax.models import params as params_lib
from defi_jax.objectives import setup

_ROLE = "gfdm"
_PARTS = ("gfdm/", "encoders/latents/", "encoders/gfdm_text/")


class VideoModel:
    """The forward model with its frozen encoders.

    Args:
        config: resolved config of the run it was trained by, GFDM or joint.
        params: params of that run; other parts are left aside.
        tokenizer: tokenizer of the video model's text role; None takes the config's tokenizer.
        where: the checkpoint or bundle, for messages.

    Raises:
        UserError: the parameters are not those of a whole video model.
    """

    def __init__(
        self,
        config: Any,
        params: Params,
        tokenizer: rollout_tokenizers.Tokenizer | None,
        where: str,
    ):
        section = config.model if config.objective == "gfdm" else config.model.gfdm
        self._latents = setup.latent_encoder(config)
        self._text = setup.text_encoder(config, _ROLE)
        self._tokenizer = tokenizer or self._text.tokenizer
        model = setup.gfdm_config(section, self._latents, self._text)
        dtype = jnp.dtype(config.compute_dtype)
        self._make = lambda rngs: gfdm.GFDM(model, dtype=dtype, rngs=rngs)
        flat = params_lib.flatten(params)
        kept = {path: leaf for path, leaf in flat.items() if path.startswith(_PARTS)}
        self._params = params_lib.unflatten(kept)
        _check_whole(self._abstract_params(), kept, where)
        self._drawer = jax.jit(self._draw, static_argnames=("num_steps", "max_guidance"))
        self.num_frames = model.num_frames
        self.image_size = config.data.image_size

    def _abstract_params(self) -> dict[str, Any]:
        """Shapes of what a whole video model has, by path."""
        shapes = {
            "gfdm": params_lib.abstract_params(self._make),
            "encoders/latents": jax.eval_shape(self._latents.init_params, jax.random.key(0)),
            "encoders/gfdm_text": jax.eval_shape(self._text.init_params, jax.random.key(0)),
        }
        return {
            f"{part}/{path}": leaf
            for part, tree in shapes.items()
            for path, leaf in params_lib.flatten(tree).items()
        }

    def predict(
        self,
        image: np.ndarray,
        text: str,
        seeds: Sequence[int],
        *,
        num_steps: int,
        max_guidance: float,
    ) -> np.ndarray:
        """Draws one future a seed.

        Args:
            image: uint8[S, S, 3], the first frame.
            seeds: of the noises.
            max_guidance: guidance of the last frame, growing linearly from 1 at the first.

        Returns:
            uint8[seeds, T, S, S, 3].
        """
        ids, mask = self._tokenizer([text])
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        drawn = self._drawer(
            self._params,
            image[None],
            ids,
            mask,
            keys,
            num_steps=num_steps,
            max_guidance=max_guidance,
        )
        return np.asarray(drawn)

    def _draw(
        self,
        params: Params,
        image: jax.Array,
        ids: jax.Array,
        mask: jax.Array,
        keys: jax.Array,
        *,
        num_steps: int,
        max_guidance: float,
    ) -> jax.Array:
        vae = params_lib.subtree(params, "encoders", "latents")
        first = self._latents.encode(vae, image)  # [1, h, w, c]
        words = params_lib.subtree(params, "encoders", "gfdm_text")
        text = self._text.encode(words, ids, mask).tokens
        shape = (self.num_frames, *first.shape[1:])
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        latents = params_lib.bind(self._make, params["gfdm"]).sample(
            noise,
            jnp.repeat(first / self._latents.scale, len(keys), axis=0),
            jnp.repeat(text, len(keys), axis=0),
            num_steps=num_steps,
            max_guidance=max_guidance,
        )
        return self._latents.decode(vae, latents)


def from_workdir(workdir: str, step: int | None = None) -> tuple[VideoModel, int]:
    """Reads the video model of a run, its moving average where it has one, and the step.

    Args:
        workdir: workdir of a GFDM or joint run, or one of its checkpoints.
        step: which checkpoint; None takes the latest that verifies.

    Raises:
        UserError: no such checkpoint, or one without a video model.
        DataError: it is damaged.
    """
    params, metadata = manager.load_params(workdir, step)
    if metadata["objective"] not in ("gfdm", "joint"):
        raise errors.UserError(
            f"checkpoint of objective {metadata['objective']!r} has no video model",
            workdir,
            "give the --workdir of a GFDM run",
        )
    config = ml_collections.ConfigDict(metadata["config"])
    return VideoModel(config, params, None, workdir), metadata["step"]


def from_bundle(directory: str) -> tuple[VideoModel, int]:
    """Reads the video model that a bundle's policy looks ahead with, and the step.

    Raises:
        UserError: no bundle there, or one without a whole video model.
        DataError: it is damaged.
    """
    source = rollout_bundle.read_bundle(directory)
    tokenizer = rollout_tokenizers.from_bundle(source.spec.text[_ROLE], source)

    flat = safetensors.numpy.load_file(source.path(rollout_bundle.PARAMS))
    if source.spec.provenance.get("weights_dtype") == "bfloat16":  # to save space only
        flat = {path: leaf.astype(np.float32) for path, leaf in flat.items()}
    config: Mapping[str, Any] = source.spec.model["config"]
    model = VideoModel(
        ml_collections.ConfigDict(config),
        params_lib.unflatten(flat),
        tokenizer,
        str(pathlib.Path(directory)),
    )
    return model, source.spec.provenance["step"]


def _check_whole(wanted: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Raises UserError where arrays are absent, as after a truncated export, or of another size."""
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise errors.UserError(
            f"only a part of the video model is there, which gives features but no pictures: "
            f"{len(missing)} of {len(wanted)} arrays are missing ({missing[0]}, ...)",
            where,
            "give the --workdir of the GFDM run",
        )
    misshapen = [path for path in sorted(wanted) if wanted[path].shape != found[path].shape]
    if misshapen:
        first = misshapen[0]
        raise errors.UserError(
            f"{len(misshapen)} arrays do not fit the config ({first} is {found[first].shape}, not "
            f"{wanted[first].shape}, ...)",
            where,
            "give a run or bundle whose config was not changed",
        )
