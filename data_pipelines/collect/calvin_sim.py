"""Demonstrations in CALVIN's scene D by our scripted experts; not the CALVIN data set.

An episode is one task of one of the official chains, the tasks before it played unseen by the
expert. Its start is no evaluation start: the blocks lie up to 2 cm elsewhere and are turned
otherwise. As in Meta-World's, the executed action is pushed off for short bursts, and the label is
the expert's own.

The simulator runs in an environment of its own: a child process plays a block's episodes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from defi_rollout.benchmarks import calvin, calvin_chains, simulators

from data_pipelines import episodes
from data_pipelines.collect import blocks
from data_pipelines.formats import image
from data_pipelines.store import writer as store_writer
from defi_jax import errors

SOURCE = "calvin_sim"
ORIGIN = "self-made, scripted; not the CALVIN data set"
EXAMPLE = "open_drawer"  # a task
MAX_ATTEMPTS = 4  # starts tried for one episode before its expert counts as broken

_CONTROL_HZ = 30.0
_DISPLACEMENT, _TURN = 0.02, np.pi / 8  # of a block on the table, m and rad
_ON_TABLE_Y = 0.0  # blocks on the table lie in front of this, those in the cabinet behind
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What must not differ between the runs that fill one store.

    Attributes:
        action_noise: standard deviation of a disturbance, in units of the action (1 = 2 cm).
        seed: seed of starts and noise.
        strip_actions: write action-free video.
    """

    action_noise: float = 0.1
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
        return f"{SOURCE}_video" if self.strip_actions else SOURCE

    def episode_id(self, task: str, index: int) -> str:
        """See `episodes.Episode`."""
        return f"{self.source}-{task}-{index:05d}"


def collect(
    tasks: Sequence[str],
    output: str | os.PathLike,
    episodes_per_task: int,
    settings: Settings = Settings(),
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
        calvin.starts(task)
    simulators.python_of(calvin.SIMULATOR)
    return blocks.collect(
        _collect_block,
        tasks,
        output,
        episodes_per_task,
        settings,
        workers=workers,
        fix="try fewer workers or DEFI_CALVIN_RENDERER=tiny",
    )


# ---- in a worker process ----


def _collect_block(block: blocks.Block) -> list[blocks.Collected]:
    """Has the episodes of a block played and publishes them as one shard."""
    began, settings = time.perf_counter(), block.settings
    chains, starts = calvin_chains.chains(), calvin.starts(block.task)
    with tempfile.TemporaryDirectory() as name:
        folder, plan = pathlib.Path(name), []
        for index in block.indices:
            chain = chains[starts[index % len(starts)]]
            plan.append({"id": str(index), "task": block.task, "tasks": chain.tasks})
            scenes, noise = _draw(chain, index, settings)
            np.savez(folder / f"{index}.npz", scenes=scenes, noise=noise)
        (folder / "plan.json").write_text(json.dumps(plan))
        child = simulators.start_child(
            calvin.SIMULATOR, "defi_rollout.benchmarks.calvin_record", [name]
        )
        if child.wait():
            raise errors.CheckFailed(
                f"the simulator's process ended with code {child.returncode}",
                block.task,
                "see the messages above",
            )
        source = settings.source
        with store_writer.EpisodeWriter(
            block.directory, source=source, shard=block.shard
        ) as writer:
            found = [_read(folder, block, index) for index in block.indices]
            for episode, _ in found:
                writer.write(episode)
    seconds = (time.perf_counter() - began) / len(found)
    return blocks.summarize(
        blocks.Collected(
            task=block.task,
            start=calvin.SINGLE,
            episodes=1,
            attempts=attempts,
            frames=episode.length,
            steps=float(episode.length),
            seconds=seconds,
        )
        for episode, attempts in found
    )


def _draw(
    chain: calvin_chains.Chain, index: int, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Scenes and noise of all attempts at an episode; see `calvin_record`."""
    scenes, noise = [], []
    steps = calvin.TASK_STEPS["calvin-abcd-360"]
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([settings.seed, index, attempt])
        scene = chain.scene_obs()
        for block in scene[6:].reshape(3, 6):  # position and Euler angles of each, see `scene_obs`
            if block[1] < _ON_TABLE_Y:
                block[:2] += rng.uniform(-_DISPLACEMENT, _DISPLACEMENT, 2)
            block[5] = np.pi / 2 + rng.uniform(-_TURN, _TURN)
        scenes.append(scene)
        noise.append(blocks.disturbances(steps, calvin.ACTION_DIM, settings.action_noise, rng))
    return np.stack(scenes), np.stack(noise)


def _read(folder: pathlib.Path, block: blocks.Block, index: int) -> tuple[episodes.Episode, int]:
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
            camera: [image.encode_jpeg(picture, _JPEG_QUALITY) for picture in played[camera]]
            for camera in ("static", "gripper")
        }
        columns = {"actions": played["actions"], "states": played["states"]}
        digest, attempt = str(played["start_digest"]), int(played["attempt"])
    starts = calvin.starts(block.task)
    episode = episodes.Episode(
        episode_id=settings.episode_id(block.task, index),
        source=settings.source,
        embodiment=calvin.EMBODIMENT,
        instructions=(calvin.INSTRUCTIONS[block.task],),
        fps=_CONTROL_HZ,
        frames=frames,
        metadata={
            "task": block.task,
            "origin": ORIGIN,
            "scene": "D",
            "chain": starts[index % len(starts)],
            "start_digest": digest,
            "seed": settings.seed,
        },
        **dict.fromkeys(columns) if settings.strip_actions else columns,
    )
    return episode, attempt + 1
