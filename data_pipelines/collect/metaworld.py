"""Meta-World demonstrations: scripted experts in the simulator become episodes.

An episode holds both cameras at every control step (80 Hz) and the expert's own action there, while
the executed action is pushed off for short bursts: the labels show the way back from states that an
undisturbed expert never visits (DART, Laskey et al. 2017). Only episodes that succeed, and do not
bring about the opposite task on the way, are kept.

The work is cut into blocks of episodes of one task. A block becomes one shard of the store, so that
a killed collection continues at the first missing block, and the bytes of the store do not depend
on how many processes made it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from defi_rollout import files as rollout_files
from defi_rollout.benchmarks import metaworld_env, metaworld_tasks

from data_pipelines import episodes, files
from data_pipelines.formats import image, json_files
from data_pipelines.sources import workers as workers_lib
from data_pipelines.store import writer as store_writer
from defi_jax import errors

SOURCE = "metaworld"
VIDEO_SOURCE = "metaworld_video"  # actions stripped

BLOCK_EPISODES = 10
MAX_ATTEMPTS = 20  # starts tried for one episode before its expert counts as broken
STEPS_AFTER_SUCCESS = 6  # so that a model sees the end of the motion

# Share of steps that are disturbed, and the mean length of a burst of one constant disturbance.
# Bursts, not white noise: at 1 cm a step independent noise cancels and hardly leaves the path.
NOISE_SHARE = 0.4
NOISE_BURST_STEPS = 8

SETTINGS_FILE = "collection.json"

_JPEG_QUALITY = 95
_BLOCK_SECONDS, _BLOCK_BYTES = 24 * 3600, 64 << 30  # no limits: the code is ours


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What must not differ between the runs that fill one store.

    Attributes:
        image_size: height and width of the pictures, pixels.
        half_way_share: share of the paired tasks' episodes that start half-way, rounded up.
        action_noise: standard deviation of a disturbance, in units of the action (1 = full speed).
        seed: seed of starts and noise.
        strip_actions: write action-free video.
    """

    image_size: int = 64
    half_way_share: float = 0.5
    action_noise: float = 0.3
    seed: int = 0
    strip_actions: bool = False

    def __post_init__(self):
        if not 8 <= self.image_size <= 1024:
            raise errors.UserError("image size outside of 8 to 1024", str(self.image_size))
        if not 0.0 <= self.half_way_share <= 1.0:
            raise errors.UserError("half-way share outside of 0 to 1", str(self.half_way_share))
        if not 0.0 <= self.action_noise <= 1.0:
            raise errors.UserError("action noise outside of 0 to 1", str(self.action_noise))
        if self.seed < 0:
            raise errors.UserError("negative seed", str(self.seed))

    @property
    def source(self) -> str:
        """See `episodes.Episode`."""
        return VIDEO_SOURCE if self.strip_actions else SOURCE

    def episode_id(self, task: str, index: int) -> str:
        """See `episodes.Episode`."""
        return f"{self.source}-{task}-{index:05d}"

    def start_of(self, task: str, index: int) -> str:
        """The kind of start of episode `index`; spread evenly, so that any prefix has the share."""
        if metaworld_tasks.pair_of(task) is None:
            return "usual"
        share = self.half_way_share
        is_half_way = math.ceil((index + 1) * share) > math.ceil(index * share)
        return "half_way" if is_half_way else "usual"


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
class _Block:
    task: str
    indices: tuple[int, ...]
    directory: str
    settings: Settings

    @property
    def shard(self) -> str:
        number = self.indices[0] // BLOCK_EPISODES
        return f"{self.task.replace('-', '_')}_{number:05d}"


def collect(
    tasks: Sequence[str],
    output: str | os.PathLike,
    episodes_per_task: int,
    settings: Settings = Settings(),
    *,
    workers: int = 2,
) -> list[Collected]:
    """Fills the episode store `output` with `episodes_per_task` successful episodes of each task.

    Episodes that are there already are left alone, so a stopped collection continues, and a later
    call with more episodes or tasks adds what is missing. Progress goes to stderr.

    Returns:
        Counts of what this call added, by task and start.

    Raises:
        UserError: unknown task, a store made with other settings, simulator or OpenGL missing, an
            expert that never succeeds, or a process that died.
    """
    if episodes_per_task < 1 or workers < 1:
        raise errors.UserError(
            "nothing to do",
            f"episodes_per_task={episodes_per_task}, workers={workers}",
            "give at least 1 of each",
        )
    for task in tasks:
        metaworld_tasks.get_task(task)
    metaworld_env.choose_gl()  # once here: the processes inherit the choice
    directory = pathlib.Path(output)
    _check_settings(directory, settings)
    with files.alone(directory):
        blocks = _missing_blocks(tasks, directory, episodes_per_task, settings)
        return summarize(_collect_blocks(blocks, workers))


def _collect_blocks(blocks: Sequence[_Block], workers: int) -> Iterator[Collected]:
    """Yields the counts of each block when it is published."""
    pool = workers_lib.Workers(
        count=min(workers, len(blocks)), seconds=_BLOCK_SECONDS, memory_bytes=_BLOCK_BYTES
    )
    total = sum(len(block.indices) for block in blocks)
    with (
        contextlib.closing(workers_lib.run(_collect_block, blocks, pool)) as found,
        tqdm.tqdm(total=total, unit="episode", file=sys.stderr) as bar,
    ):
        for block, added in found:
            if isinstance(added, workers_lib.Failure):
                raise errors.UserError(
                    "a collecting process died (out of memory, or the OpenGL driver)",
                    f"collect, {added.reason}",
                    "run again to continue; if it dies again, try fewer workers or "
                    "MUJOCO_GL=osmesa",
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


def _missing_blocks(
    tasks: Sequence[str], directory: pathlib.Path, episodes_per_task: int, settings: Settings
) -> list[_Block]:
    """Cuts what the store lacks into blocks; tasks alternate, so that any prefix is balanced."""
    done = store_writer.EpisodeWriter(directory, source=settings.source, shard="probe").done_ids()
    blocks = []
    for first in range(0, episodes_per_task, BLOCK_EPISODES):
        for task in dict.fromkeys(tasks):
            indices = range(first, min(first + BLOCK_EPISODES, episodes_per_task))
            missing = tuple(i for i in indices if settings.episode_id(task, i) not in done)
            if missing:
                blocks.append(
                    _Block(task=task, indices=missing, directory=str(directory), settings=settings)
                )
    return blocks


# ---- in a worker process ----


def _collect_block(block: _Block) -> list[Collected]:
    """Plays the episodes of a block and publishes them as one shard."""
    results = []
    env = metaworld_env.MetaWorldEnv(block.task, image_size=block.settings.image_size)
    source = block.settings.source
    with (
        contextlib.closing(env),
        store_writer.EpisodeWriter(block.directory, source=source, shard=block.shard) as writer,
    ):
        for index in block.indices:
            episode, counts = _collect_episode(env, index, block.settings)
            writer.write(episode)
            results.append(counts)
    return summarize(results)


def _collect_episode(
    env: metaworld_env.MetaWorldEnv, index: int, settings: Settings
) -> tuple[episodes.Episode, Collected]:
    """Plays starts until one succeeds."""
    began = time.perf_counter()
    start = settings.start_of(env.task, index)
    for attempt in range(MAX_ATTEMPTS):
        # The task is left out on purpose: both tasks of a pair then get the same half-way starts,
        # which differ in nothing but the instruction.
        rng = np.random.default_rng([settings.seed, index, attempt])
        start_seed = int(rng.integers(metaworld_env.FIRST_EVALUATION_SEED))
        played = _play(env, start_seed, start, settings.action_noise, rng)
        if played is None:
            continue
        fields, steps = played
        if settings.strip_actions:
            fields |= {"actions": None, "states": None}
        episode = episodes.Episode(
            episode_id=settings.episode_id(env.task, index),
            source=settings.source,
            embodiment=metaworld_env.EMBODIMENT,
            instructions=env.spec.instructions,
            fps=metaworld_env.CONTROL_HZ,
            **fields,
        )
        return episode, Collected(
            task=env.task,
            start=start,
            episodes=1,
            attempts=attempt + 1,
            frames=episode.length,
            steps=float(steps),
            seconds=time.perf_counter() - began,
        )
    raise errors.UserError(
        f"the expert failed {MAX_ATTEMPTS} times in a row",
        f"{env.task}, {start} start",
        "lower the action noise, or leave the task out",
    )


def _play(
    env: metaworld_env.MetaWorldEnv,
    start_seed: int,
    start: str,
    action_noise: float,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], int] | None:
    """Plays the expert with disturbances.

    Returns:
        Frames by camera, float32[n, 4] actions and states and metadata of an episode, and the
        steps to success; None unless it succeeds at its task alone.
    """
    env.reset(start_seed, start)
    digest = env.start_digest()
    noise = _disturbances(env.spec.horizon, action_noise, rng)
    views, actions, states, steps = [], [], [], None
    for step in range(env.spec.horizon):
        views.append(env.observe())
        states.append(env.state())
        actions.append(env.expert_action())
        disturbance = noise[step] if steps is None else 0.0
        if env.step(actions[-1] + disturbance) and steps is None:
            steps = step + 1
        if steps is not None and step + 1 >= steps + STEPS_AFTER_SUCCESS:
            break
    if steps is None or any(done for task, done in env.successes.items() if task != env.task):
        return None
    frames = {
        camera: [image.encode_jpeg(view[key], _JPEG_QUALITY) for view in views]
        for camera, key in metaworld_env.CAMERA_KEYS.items()
    }
    names = {"task": env.task, "start": start, "start_digest": digest, "seed": start_seed}
    columns = {"actions": np.stack(actions), "states": np.stack(states)}
    return {"frames": frames, "metadata": names, **columns}, steps


def _disturbances(steps: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Draws bursts of constant disturbance, float32 [steps, 4]; the gripper is left alone.

    A two-state chain: bursts end with probability 1 / NOISE_BURST_STEPS, and begin as often as it
    takes for them to cover NOISE_SHARE of the steps.
    """
    stop = 1.0 / NOISE_BURST_STEPS
    begin = stop * NOISE_SHARE / (1.0 - NOISE_SHARE)
    noise = np.zeros((steps, metaworld_env.ACTION_DIM), np.float32)
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
