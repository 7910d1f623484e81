"""What a bundle says about its policy, gathered from a checkpoint's metadata.

Everything a client needs travels: cameras, preprocessing, tokenisation, the affine map back to
real actions, horizons, the digests of the training starts, and the config that rebuilds the
program.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from defi_rollout import spec as rollout_spec

from defi_jax import embodiment, errors
from defi_jax.export import program
from defi_jax.objectives import joint

# Turns the metadata's normaliser into its inverse, float32[..., A] -> float32[..., A].
MakeInverse = Callable[[Mapping[str, Any]], Callable[[np.ndarray], np.ndarray]]

EXAMPLE_PROMPT = "open the drawer"


def describe(
    objective: joint.JointObjective, metadata: Mapping[str, Any], make_inverse: MakeInverse
) -> rollout_spec.BundleSpec:
    """Returns the bundle's specification, its list of files still empty.

    Raises:
        UserError: the embodiment is not known, or a tokenizer can't travel.
    """
    config = objective.config
    robot = embodiment.get(config.embodiment)
    chunk, dim = objective.action_noise_shape(1)[1:]
    if dim != len(robot.action_names):
        raise errors.UserError(
            f"actions have {dim} dimensions, {robot.name} has {len(robot.action_names)}",
            "config.data.action_dim",
            "set --config.embodiment to the robot of the data",
        )
    size = config.data.image_size
    return rollout_spec.BundleSpec(
        schema_version=rollout_spec.SCHEMA_VERSION,
        files={},
        embodiment=dataclasses.asdict(robot),
        action_spec=rollout_spec.ActionSpec(
            dim=dim, names=robot.action_names, low=robot.action_low, high=robot.action_high
        ),
        action_statistics=_affine(metadata["normalizer"], dim, make_inverse),
        action_horizon=chunk,
        execute_horizon=config.execute_horizon,
        control_hz=robot.control_hz,
        cameras=tuple(
            rollout_spec.CameraSpec(
                key=embodiment.CAMERA_KEYS[name], name=name, height=size, width=size
            )
            for name in config.data.cameras
        ),
        image=rollout_spec.ImageSpec(height=size, width=size, resize="pillow_bilinear"),
        text={r: _text(r, t.describe()) for r, t in objective.tokenizers().items()},
        noise=program.noise_shapes(objective),
        example_prompt=EXAMPLE_PROMPT,
        training_starts=_training_starts(metadata),
        model={"objective": metadata["objective"], "config": metadata["config"]},
        provenance=_provenance(metadata),
    )


def _affine(
    normalizer: Mapping[str, Any], dim: int, make_inverse: MakeInverse
) -> rollout_spec.ActionStatistics:
    """The inverse of every normalisation is affine: two points give it."""
    inverse = make_inverse(normalizer)
    offset, end = inverse(np.zeros(dim)), inverse(np.ones(dim))
    return rollout_spec.ActionStatistics(
        method=normalizer["kind"],
        scale=tuple((end.astype(float) - offset).tolist()),
        offset=tuple(offset.astype(float).tolist()),
    )


def _text(role: str, facts: Mapping[str, Any]) -> rollout_spec.TextSpec:
    if facts["name"] != "bytes":
        raise errors.UserError(
            f"tokenizer {facts['name']!r} can't travel in a bundle yet",
            f"config.encoders.{role}_text",
            "train with 'bytes'",
        )
    return rollout_spec.TextSpec(**facts, file="", pad_id=0)


def _training_starts(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    digests = {start for part in metadata["trained_on"] for start in part["start_digests"]}
    return tuple(sorted(digests))


def _provenance(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "step": metadata["step"],
        "trained_on": {part["name"]: part["frames"] for part in metadata["trained_on"]},
        "pipeline_fingerprint": metadata["pipeline_fingerprint"],
        "trained_with": metadata["versions"],
        "exported_with": {"jax": importlib.metadata.version("jax")},
    }
