"""Meta-World demonstrations: scripted experts in the simulator become episodes.

An episode holds both cameras at every control step (80 Hz) and the expert's own action there, while
the executed action is pushed off for short bursts: the labels show the way back from states that an
undisturbed expert never visits (DART, Laskey et al. 2017). Only episodes that succeed, and do not
bring about the opposite task on the way, are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from defi_rollout.benchmarks import metaworld_env, metaworld_tasks

from data_pipelines import episodes
from data_pipelines.collect import blocks
from data_pipelines.formats import image
from data_pipelines.store import writer as store_writer
from defi_jax import errors

EXAMPLE = "drawer-open-v3"  # a task
MAX_ATTEMPTS = 20  # starts tried for one episode before its expert counts as broken
STEPS_AFTER_SUCCESS = 6  # so that a model sees the end of the motion

_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(blocks.Settings):
    """See `blocks.Settings`; the unit of a disturbance is full speed.

    Attributes:
        image_size: height and width of the pictures, pixels.
        half_way_share: share of the paired tasks' episodes that start half-way, rounded up.
    """

    NAME = "metaworld"

    action_noise: float = 0.3
    image_size: int = 64
    half_way_share: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 8 <= self.image_size <= 1024:
            raise errors.UserError("image size outside of 8 to 1024", str(self.image_size))
        if not 0.0 <= self.half_way_share <= 1.0:
            raise errors.UserError("half-way share outside of 0 to 1", str(self.half_way_share))

    def start_of(self, task: str, index: int) -> str:
        """The kind of start of episode `index`; spread evenly, so that any prefix has the share."""
        if metaworld_tasks.pair_of(task) is None:
            return "usual"
        share = self.half_way_share
        is_half_way = math.ceil((index + 1) * share) > math.ceil(index * share)
        return "half_way" if is_half_way else "usual"


def collect(
    tasks: Sequence[str],
    output: str | os.PathLike,
    episodes_per_task: int,
    settings: Settings = Settings(),
    *,
    workers: int = 2,
) -> list[blocks.Collected]:
    """Fills the episode store `output` with `episodes_per_task` successful episodes of each task.

    Episodes that are there already are left alone, so a stopped collection continues, and a later
    call with more episodes or tasks adds what is missing. Progress goes to stderr.

    Returns:
        Counts of what this call added, by task and start.

    Raises:
        UserError: unknown task, a store made with other settings, simulator or OpenGL missing, an
            expert that never succeeds, or a process that died.
    """
    for task in tasks:
        metaworld_tasks.get_task(task)
    metaworld_env.choose_gl()  # once here: the processes inherit the choice
    return blocks.collect(
        _collect_block,
        tasks,
        output,
        episodes_per_task,
        settings,
        workers=workers,
        fix="try fewer workers or MUJOCO_GL=osmesa",
    )


# ---- in a worker process ----


def _collect_block(block: blocks.Block) -> list[blocks.Collected]:
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
    return blocks.summarize(results)


def _collect_episode(
    env: metaworld_env.MetaWorldEnv, index: int, settings: Settings
) -> tuple[episodes.Episode, blocks.Collected]:
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
        return episode, blocks.Collected(
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
    noise = blocks.disturbances(env.spec.horizon, metaworld_env.ACTION_DIM, action_noise, rng)
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
