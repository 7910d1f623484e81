"""Collecting demonstrations in a simulator: what the sources share.

The work is cut into blocks of episodes of one task. A block becomes one shard of the store, so that
a killed collection continues at the first missing block, and the bytes of the store do not depend
on how many processes made it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tqdm
from defi_rollout import files as rollout_files

from data_pipelines import files
from data_pipelines.formats import json_files
from data_pipelines.sources import workers as workers_lib
from data_pipelines.store import writer as store_writer
from defi_jax import errors

BLOCK_EPISODES = 10
SETTINGS_FILE = "collection.json"

# Share of steps that are disturbed, and the mean length of a burst of one constant disturbance.
# Bursts, not white noise: at 1 cm a step independent noise cancels and hardly leaves the path.
NOISE_SHARE = 0.4
NOISE_BURST_STEPS = 8

_BLOCK_SECONDS, _BLOCK_BYTES = 24 * 3600, 64 << 30  # no limits: the code is ours


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What must not differ between the runs that fill one store; a subclass is a source.

    Attributes:
        action_noise: standard deviation of a disturbance, in units of the action.
        seed: seed of starts and noise.
        strip_actions: write action-free video.
    """

    NAME: ClassVar[str]  # of the source

    action_noise: float
    seed: int = 0
    strip_actions: bool = False

    def __post_init__(self):
        if not 0.0 <= self.action_noise <= 1.0:
            raise errors.UserError("action noise outside of 0 to 1", str(self.action_noise))
        if self.seed < 0:
            raise errors.UserError("negative seed", str(self.seed))

    @property
    def source(self) -> str:
        """See `episodes.Episode`."""
        return f"{self.NAME}_video" if self.strip_actions else self.NAME

    def episode_id(self, task: str, index: int) -> str:
        """See `episodes.Episode`."""
        return f"{self.source}-{task}-{index:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """What a task's episodes came to, for one kind of start.

    Attributes:
        attempts: episodes played, kept or not.
        frames: control steps kept.
        steps: control steps to success, mean over the kept episodes.
        seconds: time of one process, failures included.
    """

    task: str
    start: str
    episodes: int
    attempts: int
    frames: int
    steps: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Episodes of one task that one process makes.

    Attributes:
        indices: of the episodes.
        directory: of the store.
        settings: the source's own kind of `Settings`.
    """

    task: str
    indices: tuple[int, ...]
    directory: str
    settings: Any

    @property
    def shard(self) -> str:
        """The block's own shard of the store."""
        number = self.indices[0] // BLOCK_EPISODES
        return f"{self.task.replace('-', '_')}_{number:05d}"


CollectBlock = Callable[[Block], list[Collected]]


def collect(
    collect_block: CollectBlock,
    tasks: Sequence[str],
    output: str | os.PathLike,
    episodes_per_task: int,
    settings: Settings,
    *,
    workers: int,
    fix: str,
) -> list[Collected]:
    """Fills the episode store `output` with `episodes_per_task` successful episodes of each task.

    Args:
        collect_block: plays a block's episodes and publishes them, in a process of its own.
        settings: see `Block`.
        fix: what to try where processes die.

    Returns:
        Counts of what this call added, by task and start.

    Raises:
        UserError: nothing to do, a store made with other settings, or a process that died.
    """
    if episodes_per_task < 1 or workers < 1:
        raise errors.UserError(
            "nothing to do",
            f"episodes_per_task={episodes_per_task}, workers={workers}",
            "give at least 1 of each",
        )
    directory = pathlib.Path(output)
    _check_settings(directory, settings)
    with files.alone(directory):
        blocks = missing_blocks(tasks, directory, episodes_per_task, settings)
        return summarize(_collect_blocks(collect_block, blocks, workers, fix))


def _collect_blocks(
    collect_block: CollectBlock, blocks: Sequence[Block], workers: int, fix: str
) -> Iterator[Collected]:
    """Yields the counts of each block when it is published."""
    pool = workers_lib.Workers(
        count=min(workers, len(blocks)), seconds=_BLOCK_SECONDS, memory_bytes=_BLOCK_BYTES
    )
    total = sum(len(block.indices) for block in blocks)
    with (
        contextlib.closing(workers_lib.run(collect_block, blocks, pool)) as found,
        tqdm.tqdm(total=total, unit="episode", file=sys.stderr) as bar,
    ):
        for block, added in found:
            if isinstance(added, workers_lib.Failure):
                raise errors.UserError(
                    "a collecting process died (out of memory, or the OpenGL driver)",
                    f"collect, {added.reason}",
                    f"run again to continue; if it dies again, {fix}",
                )
            yield from added
            bar.update(len(block.indices))


def summarize(parts: Iterable[Collected]) -> list[Collected]:
    """Adds up parts of the same task and start."""
    groups: dict[tuple[str, str], list[Collected]] = {}
    for part in parts:
        groups.setdefault((part.task, part.start), []).append(part)
    return [
        Collected(
            task=task,
            start=start,
            episodes=(kept := sum(p.episodes for p in group)),
            attempts=sum(p.attempts for p in group),
            frames=sum(p.frames for p in group),
            steps=sum(p.steps * p.episodes for p in group) / kept,
            seconds=sum(p.seconds for p in group),
        )
        for (task, start), group in sorted(groups.items())
    ]


def _check_settings(directory: pathlib.Path, settings: Settings) -> None:
    """Remembers the settings in the store, and refuses to mix it with others."""
    path = directory / SETTINGS_FILE
    wanted = dataclasses.asdict(settings)
    if path.exists():
        found = json_files.load(path, what="settings", fix="choose another output directory")
        if differing := files.differences(found, wanted):
            raise errors.UserError(
                f"the store was collected with other settings ({'; '.join(differing)})",
                directory,
                "repeat those, or choose another output directory",
            )
        return
    files.check_no_files(directory, SETTINGS_FILE)
    files.make_directory(directory)
    rollout_files.write(path, json.dumps(wanted, indent=1) + "\n")


def missing_blocks(
    tasks: Sequence[str], directory: pathlib.Path, episodes_per_task: int, settings: Settings
) -> list[Block]:
    """Cuts what the store lacks into blocks; tasks alternate, so that any prefix is balanced."""
    done = store_writer.EpisodeWriter(directory, source=settings.source, shard="probe").done_ids()
    blocks = []
    for first in range(0, episodes_per_task, BLOCK_EPISODES):
        for task in dict.fromkeys(tasks):
            indices = range(first, min(first + BLOCK_EPISODES, episodes_per_task))
            missing = tuple(i for i in indices if settings.episode_id(task, i) not in done)
            if missing:
                blocks.append(
                    Block(task=task, indices=missing, directory=str(directory), settings=settings)
                )
    return blocks


def disturbances(steps: int, action_dim: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Draws bursts of constant disturbance, float32 [steps, action_dim].

    Only the first three numbers, the position, are disturbed.

    A two-state chain: bursts end with probability 1 / NOISE_BURST_STEPS, and begin as often as it
    takes for them to cover NOISE_SHARE of the steps.
    """
    stop = 1.0 / NOISE_BURST_STEPS
    begin = stop * NOISE_SHARE / (1.0 - NOISE_SHARE)
    noise = np.zeros((steps, action_dim), np.float32)
    current = np.zeros(3)
    is_burst = False
    for step in range(steps):
        if is_burst:
            is_burst = rng.random() >= stop
        elif rng.random() < begin:
            is_burst, current = True, rng.normal(0.0, scale, 3)
        if is_burst:
            noise[step, :3] = current
    return noise
