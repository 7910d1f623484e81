"""Datasets that `launch/data.py export` wrote: standardised already, they come back as they were.

What RLDS has no place for (names of the cameras, paraphrases, robot, rate) is one JSON text an
episode, in `FIELD`; it also tells that a dataset is an export.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from data_pipelines import episodes
from data_pipelines.formats import json_files
from data_pipelines.open_x import base, columns
from defi_jax import embodiment, errors

FIELD = "episode_metadata/defi_jax_episode"
ACTION, STATE, IMAGE = "action", "observation/state", "observation/image_"


def is_export(episode_fields: Mapping[str, base.Field]) -> bool:
    """Whether a dataset whose episodes have these fields was written by `export`."""
    return FIELD in episode_fields


def describe(episode: episodes.Episode) -> str:
    """Returns the content of `FIELD`."""
    kept = {name: getattr(episode, name) for name in episodes.SHARED}
    return json.dumps(kept | {"cameras": list(episode.frames)}, ensure_ascii=False)


def standard(step_fields: Mapping[str, base.Field]) -> base.Standard:
    """Returns how an export with these fields is read; `restore` does the rest."""
    actions, states = _column(step_fields, ACTION), _column(step_fields, STATE)
    cameras = [name for name in step_fields if name.startswith(IMAGE)]
    # What the actions mean follows from the restored source or robot (`registry.convention_of`).
    convention = None if actions is None else embodiment.end_effector()
    return base.Standard(
        robot=embodiment.UNKNOWN,
        control_hz=1.0,
        cameras={name: name for name in cameras},
        actions=actions,
        states=states,
        convention=convention,
    )


def restore(episode: episodes.Episode, where: str) -> episodes.Episode:
    """Returns the episode as it was exported; its former id is `exported_id` in the metadata.

    Raises:
        DataError: the description is damaged.
    """
    what = f"'{FIELD}' is not as export writes it"
    kinds = (KeyError, TypeError, ValueError)
    with errors.DataError.instead_of(kinds, what, where, "export the store again"):
        kept = json_files.parse(episode.metadata[FIELD])
        frames = {
            camera: episode.frames[f"{IMAGE}{number}"]
            for number, camera in enumerate(kept["cameras"])
        }
        return dataclasses.replace(
            episode,
            frames=frames,
            source=kept["source"],
            embodiment=kept["embodiment"],
            instructions=tuple(kept["instructions"]),
            fps=kept["fps"],
            metadata={**kept["metadata"], "exported_id": kept["episode_id"]},
        )


def _column(fields: Mapping[str, base.Field], name: str) -> tuple[columns.Column] | None:
    return (columns.Column(name=name, field=fields[name]),) if name in fields else None
