"""Plays one episode: policy and environment in, one row of results out.

Legend: A action dimension, H W image size.
"""

import hashlib
import pathlib
import statistics
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from defi_rollout import executors, policy
from defi_rollout.benchmarks import base, videos


class _Camera:
    """Draws each step at most once, whoever asks: the policy, the film or both.

    Attributes:
        drawn: first view of every step that was drawn.
    """

    def __init__(self, environment: base.Environment):
        self._environment = environment
        self._step, self._views = -1, {}
        self.drawn: list[np.ndarray] = []

    def at(self, step: int) -> dict[str, np.ndarray]:
        if step != self._step:
            self._views, self._step = self._environment.observe(), step
            self.drawn.append(_first_view(self._views))
        return self._views


class _TimedActor:
    """Passes calls on and keeps the time of each inference, in milliseconds."""

    def __init__(self, actor: executors.Actor):
        self._actor = actor
        self.times_ms: list[float] = []

    def infer(self, obs: Any) -> dict[str, Any]:
        started = time.perf_counter()
        result = self._actor.infer(obs)
        self.times_ms.append(1000 * (time.perf_counter() - started))
        return result

    def reset(self) -> None:
        self._actor.reset()


def play(
    episode: base.Episode,
    *,
    actor: executors.Actor,
    environment: base.Environment,
    benchmark: base.Benchmark,
    execute_horizon: int,
    training_starts: Collection[str],
    output: pathlib.Path,
) -> dict[str, Any]:
    """Plays `episode` to its end and returns its row, without "status".

    The noise of each inference depends on the episode's id and the step alone, so that the row
    does not depend on which worker plays it, or after what.
    """
    started = time.perf_counter()
    digest = environment.reset(episode)
    timed, camera, film = _TimedActor(actor), _Camera(environment), []
    executor = executors.ChunkExecutor(timed, execute_horizon)
    executor.reset()
    first_success: dict[str, int | None] = {}
    step = 0
    while step < episode.max_steps and not _is_over(episode, first_success):
        if episode.film and step % benchmark.film_every == 0:
            film.append(_first_view(camera.at(step)))
        action = executor.next_action(_observer(camera, episode, step))
        step += 1
        for task, succeeded in environment.step(action).items():
            if first_success.setdefault(task, None) is None and succeeded:
                first_success[task] = step
    succeeded = first_success.get(episode.scored_task) is not None
    fps = benchmark.film_fps
    if episode.film:
        film.append(_first_view(camera.at(step)))
    elif not succeeded:
        # What the policy saw has been drawn anyway: every failure can be looked at.
        film, fps = camera.drawn, fps * benchmark.film_every / execute_horizon
    return episode.row() | {
        "start_digest": digest,
        "start_unseen": digest not in training_starts,
        "success": succeeded,
        "first_success": first_success,
        "steps": step,
        "infer_ms_p50": round(statistics.median(timed.times_ms), 3),
        "seconds": round(time.perf_counter() - started, 3),
        "video": videos.write_video(output, episode.id, film, max(fps, 1.0)),
    }


def _is_over(episode: base.Episode, first_success: dict[str, int | None]) -> bool:
    return any(first_success.get(task) is not None for task in episode.ends_on)


def _observer(camera: _Camera, episode: base.Episode, step: int) -> Callable[[], dict[str, Any]]:
    def observe() -> dict[str, Any]:
        text = f"{episode.id}/{episode.seed}/{step}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        return {**camera.at(step), policy.PROMPT: episode.instruction, policy.SEED: seed}

    return observe


def _first_view(views: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(views.values())).copy()
