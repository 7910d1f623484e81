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
from defi_rollout import tokenizers

from defi_jax import embodiment, errors
from defi_jax.objectives import joint

# Turns the metadata's normaliser into its inverse, float32[..., A] -> float32[..., A].
MakeInverse = Callable[[Mapping[str, Any]], Callable[[np.ndarray], np.ndarray]]

EXAMPLE_PROMPT = "open the drawer"


def describe(
    objective: joint.JointObjective,
    metadata: Mapping[str, Any],
    make_inverse: MakeInverse,
    weights_dtype: str,
) -> rollout_spec.BundleSpec:
    """Returns the bundle's specification, its list of files still empty.

    Raises:
        UserError: the embodiment is not known, or a tokenizer has no file that can travel.
    """
    config = objective.config
    chunk, dim = objective.noise_shapes()["actions"]
    robot = embodiment.get(config.embodiment, dim)
    size = config.data.image_size
    low, high = limits(robot, metadata["normalizer"]["statistics"])
    return rollout_spec.BundleSpec(
        schema_version=rollout_spec.SCHEMA_VERSION,
        files={},
        embodiment=dataclasses.asdict(robot),
        action_spec=rollout_spec.ActionSpec(dim=dim, names=robot.action_names, low=low, high=high),
        action_statistics=_affine(metadata["normalizer"], dim, make_inverse),
        action_horizon=chunk,
        execute_horizon=config.execute_horizon,
        control_hz=robot.control_hz,
        cameras=tuple(
            rollout_spec.CameraSpec(
                key=embodiment.CAMERA_KEYS[name], name=name, height=height, width=width
            )
            for name, (height, width) in _frame_sizes(metadata, config).items()
        ),
        image=rollout_spec.ImageSpec(height=size, width=size, resize="pillow_bilinear"),
        text={
            role: dataclasses.replace(tokenizer.text, file=_file(role, tokenizer))
            for role, tokenizer in objective.tokenizers().items()
        },
        noise=objective.noise_shapes(),
        example_prompt=EXAMPLE_PROMPT,
        training_starts=_training_starts(metadata),
        model={"objective": metadata["objective"], "config": metadata["config"]},
        provenance=_provenance(metadata) | {"weights_dtype": weights_dtype},
    )


def tokenizer_files(objective: joint.JointObjective) -> dict[str, bytes]:
    """Content of the tokenizers' files by their name in the bundle."""
    own = objective.tokenizers()
    return {_file(role, t): t.path.read_bytes() for role, t in own.items() if t.text.file}


def _file(role: str, tokenizer: tokenizers.Tokenizer) -> str:
    """Name in the bundle of the one file that holds a tokenizer, "" where it needs none."""
    name = tokenizer.text.file
    if name == "vocab.json":
        raise errors.UserError(
            "a bundle carries a tokenizer as one file",
            str(tokenizer.path),
            "put the release's tokenizer.json beside it",
        )
    return f"{role}.{name}" if name else ""


def limits(
    robot: embodiment.Embodiment, statistics: Mapping[str, Any] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the robot's smallest and largest actions; those of training where none is documented.

    Args:
        robot: whose limits may be None.
        statistics: the training actions' extremes, as in a checkpoint's normaliser; runs without
            normalisation keep none, then nothing is cut off.
    """
    largest = float(np.finfo(np.float32).max)
    dim = len(robot.action_names)
    seen_low = statistics["min"] if statistics else [-largest] * dim
    seen_high = statistics["max"] if statistics else [largest] * dim
    low = (a if a is not None else b for a, b in zip(robot.action_low, seen_low, strict=True))
    high = (a if a is not None else b for a, b in zip(robot.action_high, seen_high, strict=True))
    return tuple(low), tuple(high)


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


def _frame_sizes(metadata: Mapping[str, Any], config: Any) -> dict[str, tuple[int, int]]:
    """Returns height and width of each camera's frames, of the data set with the largest share.

    Checkpoints of older versions do not know them; then they are the model's.
    """
    parts = sorted(metadata["trained_on"], key=lambda part: part.get("weight", 0))
    known = {name: size for part in parts for name, size in part.get("frame_sizes", {}).items()}
    model = (config.data.image_size,) * 2
    return {name: tuple(known.get(name, model)) for name in config.data.cameras}


def _training_starts(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    digests = {start for part in metadata["trained_on"] for start in part["start_digests"]}
    return tuple(sorted(digests))


def _provenance(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "step": metadata["step"],
        "weights": metadata["weights"],
        "trained_on": {part["name"]: part["frames"] for part in metadata["trained_on"]},
        "origins": sorted(
            # Checkpoints of older versions do not know them.
            {origin for part in metadata["trained_on"] for origin in part.get("origins", ())}
        ),
        # What training started from; runs of older versions kept no more than paths.
        "made_from": metadata.get("made_from") or metadata["config"]["init"],
        "pipeline_fingerprint": metadata["pipeline_fingerprint"],
        "trained_with": metadata["versions"],
        "exported_with": {"jax": importlib.metadata.version("jax")},
    }
