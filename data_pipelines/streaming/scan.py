"""One pass over an RLDS dataset for what a stream must know before it starts: statistics and size.

The result is kept in the user's cache directory under a digest of the dataset's description and of
its standardisation, because the dataset's own directory is often read-only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import numpy as np
import tqdm
from absl import logging
from defi_rollout import files as rollout_files

from data_pipelines import episodes, files, normalization
from data_pipelines.sources import base, rlds

_MOST_PROCESSES = 16  # that read


@dataclasses.dataclass(frozen=True)
class Scan:
    """What all episodes of a dataset together are.

    Attributes:
        steps: number of steps.
        statistics: statistics of actions and states, as `statistics.of_source` of the converted
            store.
    """

    steps: int
    statistics: dict[str, normalization.Statistics]


def digest(dataset: rlds.RldsSource) -> str:
    """Identifies a dataset's files and how they are standardised."""
    return files.digest([dataset.name, base.recipe(dataset)])


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What a scan takes of an episode."""

    episode_id: str
    length: int
    actions: np.ndarray | None
    states: np.ndarray | None


def known_steps(dataset: rlds.RldsSource) -> int:
    """Returns the number of steps where a scan is kept, and else 0."""
    kept = _load(_path(dataset))
    return kept.steps if kept else 0


def scan(dataset: rlds.RldsSource) -> Scan:
    """Reads all episodes, or what was kept of an earlier scan."""
    path = _path(dataset)
    kept = _load(path)
    if kept is not None:
        return kept
    workers = base.Workers(count=min(os.cpu_count() or 1, _MOST_PROCESSES))
    logging.warning(
        "%s: reading all %d records once for steps and statistics, in %d processes; "
        "the result is kept in %s",
        dataset.name,
        dataset.total,
        workers.count,
        path,
    )
    found = _compute(dataset, workers)
    values = {name: column.to_json() for name, column in found.statistics.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rollout_files.write(path, json.dumps({"steps": found.steps, "statistics": values}))
    except OSError as error:
        logging.warning("statistics are not kept in %s: %s", path, error)
    return found


def _columns(episode: episodes.Episode) -> _Columns:
    actions = episode.actions
    if actions is not None:
        actions = episodes.recorded_actions(actions, episode.metadata)
    return _Columns(episode.episode_id, episode.length, actions, episode.states)


def _compute(dataset: rlds.RldsSource, workers: base.Workers) -> Scan:
    columns: dict[str, dict[str, np.ndarray]] = {name: {} for name in normalization.COLUMNS}
    steps = 0
    found = dataset.map(_columns, workers=workers)
    for episode in tqdm.tqdm(found, total=dataset.total, desc=dataset.name, unit="ep"):
        if isinstance(episode, episodes.Reject):
            logging.warning("%s: left out, %s", episode.item, episode.reason)
            continue
        steps += episode.length
        if episode.actions is not None:
            columns["actions"][episode.episode_id] = episode.actions
        if episode.states is not None:
            columns["states"][episode.episode_id] = episode.states
    # In the order of a store, so that sums are equal to the last bit.
    return Scan(
        steps=steps,
        statistics={
            name: normalization.compute(
                np.concatenate([parts[key] for key in sorted(parts)]), f"{name} of {dataset.name}"
            )
            for name, parts in columns.items()
            if parts
        },
    )


def _path(dataset: rlds.RldsSource) -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "defi_jax" / "streams" / f"{digest(dataset)[:24]}.json"


def _load(path: pathlib.Path) -> Scan | None:
    try:
        content = json.loads(path.read_text())
        columns = content["statistics"].items()
        found = {name: normalization.Statistics.from_json(values) for name, values in columns}
        return Scan(steps=int(content["steps"]), statistics=found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning("statistics in %s are damaged (%s), computing them again", path, error)
        return None
