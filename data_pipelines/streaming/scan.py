"""One pass over an RLDS dataset for what a stream must know before it starts: statistics and size.

The result is kept in the user's cache directory under a digest of the dataset's description and of
its standardisation, because the dataset's own directory is often read-only.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import tqdm
from absl import logging

from data_pipelines import episodes, files, normalization
from data_pipelines.sources import base, rlds

_MOST_PROCESSES = 16  # that read


@dataclasses.dataclass(frozen=True)
class Scan:
    """What all episodes of a dataset together are.

    Attributes:
        steps: number of steps.
        statistics: statistics of actions and states, as `normalization.of_source` of the converted
            store.
    """

    steps: int
    statistics: dict[str, normalization.Statistics]


def digest(dataset: rlds.RldsSource) -> str:
    """Identifies a dataset's files and how they are standardised."""
    return files.digest([dataset.name, base.recipe(dataset)])


def known_steps(dataset: rlds.RldsSource) -> int:
    """Returns the number of steps where a scan is kept, and else 0."""
    kept = normalization.read_kept(_path(dataset), _parse)
    return kept.steps if kept else 0


def scan(dataset: rlds.RldsSource) -> Scan:
    """Reads all episodes, or what was kept of an earlier scan."""
    path = _path(dataset)
    kept = normalization.read_kept(path, _parse)
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
    columns = {name: values.to_json() for name, values in found.statistics.items()}
    normalization.keep(path, {"steps": found.steps, "statistics": columns})
    return found


def _compute(dataset: rlds.RldsSource, workers: base.Workers) -> Scan:
    rows: list[tuple[Any, ...]] = []
    steps = 0
    found = dataset.map(_columns, workers=workers)
    for episode in tqdm.tqdm(found, total=dataset.total, desc=dataset.name, unit="ep"):
        if isinstance(episode, episodes.Reject):
            logging.warning("%s: left out, %s", episode.item, episode.reason)
            continue
        length, *columns = episode
        rows.append(tuple(columns))
        steps += length
    rows.sort(key=lambda row: row[0])  # as in a store, so that sums are equal to the last bit
    return Scan(steps=steps, statistics=normalization.of_episodes(rows, dataset.name))


def _columns(episode: episodes.Episode) -> tuple[Any, ...]:
    """Returns length, id, recorded actions and states of an episode."""
    actions = episodes.recorded_actions(episode.actions, episode.metadata)
    return episode.length, episode.episode_id, actions, episode.states


def _path(dataset: rlds.RldsSource) -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "defi_jax" / "streams" / f"{digest(dataset)[:24]}.json"


def _parse(content: Any) -> Scan:
    """Returns what a kept file holds."""
    columns = normalization.parse(content["statistics"])
    return Scan(steps=int(content["steps"]), statistics=columns)
