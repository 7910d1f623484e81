"""Demonstrations of scripted experts in simulators with a Python of their own; no data set.

A child process plays a block's episodes; `defi_rollout.benchmarks.recorder` says what passes
between both. As in Meta-World's, the executed action is pushed off for short bursts, and the label
is the expert's own.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from defi_rollout.benchmarks import simulators

from data_pipelines import episodes
from data_pipelines.collect import blocks
from data_pipelines.formats import image
from data_pipelines.store import writer as store_writer
from defi_jax import embodiment, errors

MAX_ATTEMPTS = 4  # starts tried for one episode before its expert counts as broken

_CAMERAS = {"static": "observation/image", "gripper": "observation/wrist_image"}
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(blocks.Settings, abc.ABC):
    """See `blocks.Settings`."""

    DATA_SET: ClassVar[str]  # the one that it is not
    SIMULATOR: ClassVar[simulators.Simulator]
    EMBODIMENT: ClassVar[str]
    START: ClassVar[str]  # kind of start, for the counts
    FIX: ClassVar[str]  # what to try where processes die

    action_noise: float = 0.1

    @property
    def robot(self) -> embodiment.Embodiment:
        """Which one acts, and what its actions mean."""
        return embodiment.EMBODIMENTS[self.EMBODIMENT]

    @abc.abstractmethod
    def check_task(self, task: str) -> None:
        """Raises UserError for a task that it has not."""

    @abc.abstractmethod
    def instruction(self, task: str) -> str:
        """What the expert is said to do."""

    @abc.abstractmethod
    def max_steps(self, task: str) -> int:
        """Control steps that an attempt may take."""

    @abc.abstractmethod
    def draw_start(self, task: str, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """JSON values that one attempt at episode `index` starts from; see `recorder`."""

    @abc.abstractmethod
    def facts(self, task: str, index: int, start: Mapping[str, Any]) -> dict[str, Any]:
        """What is said of an episode that began from `start`, beside what all sources say."""


def collect(
    tasks: Sequence[str],
    output: str | os.PathLike,
    episodes_per_task: int,
    settings: Settings,
    *,
    workers: int = 2,
) -> list[blocks.Collected]:
    """Fills the episode store `output` with `episodes_per_task` successful episodes of each task.

    Returns:
        See `blocks.collect`.

    Raises:
        UserError: unknown task, no simulator, an expert that fails MAX_ATTEMPTS times in a row, or
            see `blocks.collect`.
    """
    for task in tasks:
        settings.check_task(task)
    simulators.python_of(settings.SIMULATOR)
    return blocks.collect(
        _collect_block,
        tasks,
        output,
        episodes_per_task,
        settings,
        workers=workers,
        fix=settings.FIX,
    )


# ---- in a worker process ----


def _collect_block(block: blocks.Block) -> list[blocks.Collected]:
    """Has the episodes of a block played and publishes them as one shard."""
    began, settings = time.perf_counter(), block.settings
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        starts = {index: _request(folder, block, index) for index in block.indices}
        plan = {"simulator": settings.SIMULATOR.name, "task": block.task, "starts": starts}
        (folder / "plan.json").write_text(json.dumps(plan))
        child = simulators.start_child(
            settings.SIMULATOR, "defi_rollout.benchmarks.recorder", [name]
        )
        if child.wait():
            raise errors.CheckFailed(
                f"the simulator's process ended with code {child.returncode}",
                block.task,
                "see the messages above",
            )
        with store_writer.EpisodeWriter(
            block.directory, source=settings.source, shard=block.shard
        ) as writer:
            found = [_read(folder, block, index, starts[index]) for index in block.indices]
            for episode, _ in found:
                writer.write(episode)
    seconds = (time.perf_counter() - began) / len(found)
    return blocks.summarize(
        blocks.Collected(
            task=block.task,
            start=settings.START,
            episodes=1,
            attempts=attempts,
            frames=episode.length,
            steps=float(episode.length),
            seconds=seconds,
        )
        for episode, attempts in found
    )


def _request(folder: pathlib.Path, block: blocks.Block, index: int) -> list[dict[str, Any]]:
    """Draws starts and noise of all attempts at an episode; writes the noise, returns the rest."""
    settings, starts, noise = block.settings, [], []
    steps, dim = settings.max_steps(block.task), len(settings.robot.action_names)
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([settings.seed, index, attempt])
        starts.append(settings.draw_start(block.task, index, rng))
        noise.append(blocks.disturbances(steps, dim, settings.action_noise, rng))
    np.save(folder / f"{index}-noise.npy", np.stack(noise))
    return starts


def _read(
    folder: pathlib.Path, block: blocks.Block, index: int, starts: Sequence[Mapping[str, Any]]
) -> tuple[episodes.Episode, int]:
    """The played episode, and the attempts that it took."""
    path, settings = folder / f"{index}-played.npz", block.settings
    if not path.exists():
        raise errors.UserError(
            f"the expert failed {MAX_ATTEMPTS} times in a row",
            f"{block.task}, episode {index}",
            "lower the action noise, or leave the task out",
        )
    with np.load(path) as played:
        frames = {
            camera: [image.encode_jpeg(picture, _JPEG_QUALITY) for picture in played[key]]
            for camera, key in _CAMERAS.items()
        }
        columns = {"actions": played["actions"], "states": played["observation/state"]}
        digest, attempt = str(played["start_digest"]), int(played["attempt"])
    episode = episodes.Episode(
        episode_id=settings.episode_id(block.task, index),
        source=settings.source,
        embodiment=settings.robot.name,
        instructions=(settings.instruction(block.task),),
        fps=settings.robot.control_hz,
        frames=frames,
        metadata={
            "task": block.task,
            "origin": f"self-made, scripted; not the {settings.DATA_SET} data set",
            **settings.facts(block.task, index, starts[attempt]),
            "start_digest": digest,
            "seed": settings.seed,
        },
        **dict.fromkeys(columns) if settings.strip_actions else columns,
    )
    return episode, attempt + 1
