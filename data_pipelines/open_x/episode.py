"""From the raw steps of one trajectory to an episode, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.open_x import base
from defi_jax import errors


def build(
    standard: base.Standard,
    steps: base.Steps,
    *,
    episode_id: str,
    source: str,
    metadata: Mapping[str, Any],
    where: str,
) -> episodes.Episode | episodes.Reject:
    """Standardises one trajectory, raw field -> one value a step.

    Its metadata are fields of the episode as a whole, which may say that it is to be left out.

    Raises:
        DataError: the fields differ in length, so that the dataset is not what its description
            says.
    """
    lengths = {name: len(steps[name]) for name in standard.fields}
    if len(set(lengths.values())) > 1:
        raise errors.DataError(
            f"fields differ in their number of steps {lengths}",
            where,
            "check that features.json belongs to these files",
        )
    flag = standard.success_flag
    if flag and not metadata.get(flag, True):
        return episodes.Reject(where, f"its '{flag}' flag is false")
    try:
        trajectory = standard.standardize(steps)
        frames = {
            camera: _kept_images(steps[field], trajectory.kept, f"{where}, camera {camera}")
            for camera, field in standard.cameras.items()
        }
        return episodes.Episode(
            episode_id=episode_id,
            source=source,
            embodiment=standard.robot,
            instructions=trajectory.instructions,
            frames=frames,
            actions=trajectory.actions,
            states=trajectory.states,
            fps=standard.control_hz,
            metadata={**metadata, "raw_steps": next(iter(lengths.values()))},
        )
    except (ValueError, errors.DataError) as error:
        return episodes.Reject(where, str(error))


def _kept_images(images: Any, kept: range, where: str) -> list[bytes]:
    """Picks the steps that remain; reads the headers only, `data.py validate` reads the pixels."""
    for step in kept:
        image.image_size(images[step], where=f"{where}, step {step}")
    return [images[step] for step in kept]
