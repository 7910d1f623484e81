"""Plays one episode: policy and environment in, one row of results out.

Legend: S action-chunk length, A action dimension, H W image size.
"""

import hashlib
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from defi_rollout import errors, executors, noise
from defi_rollout.benchmarks import adapters, base, videos


class PolicyFault(Exception):
    """The policy cannot act, which other episodes would not change; `__cause__` says why."""


class _Camera:
    """Draws each step at most once, whoever asks: the policy, the film or both.

    Attributes:
        drawn: main view of every step that was drawn.
    """

    def __init__(self, environment: base.Environment):
        self._environment = environment
        self._step, self._views = -1, {}
        self.drawn: list[np.ndarray] = []

    def at(self, step: int) -> dict[str, np.ndarray]:
        if step != self._step:
            self._views, self._step = self._environment.observe(), step
            self.drawn.append(_main_view(self._views))
        return self._views


class _TimedActor:
    """Translates for the policy and keeps the time of each inference, in milliseconds."""

    def __init__(self, actor: executors.Actor, adapter: adapters.Adapter):
        self._actor, self._adapter = actor, adapter
        self.times_ms: list[float] = []

    def infer(self, obs: Any) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            actions = self._adapter.act(self._actor.infer(obs)["actions"])
        except errors.UserError as error:
            raise PolicyFault from error
        self.times_ms.append(1000 * (time.perf_counter() - started))
        return {"actions": actions}

    def reset(self) -> None:
        self._actor.reset()


class Expert:
    """The scripted expert of an environment as a policy that needs no observation; S = 1."""

    def __init__(self, environment: base.Environment):
        self._environment = environment

    def infer(self, obs: Any) -> dict[str, Any]:
        """{"actions": float32 [1, A]}, whatever `obs` is; UserError where there is no expert."""
        return {"actions": self._environment.expert_action()[None]}

    def reset(self) -> None:
        """Nothing: the environment knows when a task begins."""


def play(
    episode: base.Episode,
    *,
    actor: executors.Actor,
    adapter: adapters.Adapter,
    environment: base.Environment,
    benchmark: base.Benchmark,
    output: pathlib.Path,
    alive: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Plays `episode` to its end and returns its row, without "status".

    The noise of each inference depends on the episode's id and the step alone, so that the row
    does not depend on which worker plays it, or after what.

    Args:
        alive: called at each step.

    Raises:
        PolicyFault: the policy cannot act.
    """
    started, digest = time.perf_counter(), environment.reset(episode)
    timed, camera, film = _TimedActor(actor, adapter), _Camera(environment), []
    executor = executors.ChunkExecutor(timed, adapter.execute_horizon)
    executor.reset()
    instruction, step = environment.instruction, 0
    first_success: dict[str, int | None] = {}
    holds: dict[str, bool] = {}
    while step < episode.max_steps and not _is_over(environment, episode, first_success):
        alive()
        if environment.instruction != instruction:
            instruction = environment.instruction
            executor.reset()
        if episode.film and step % benchmark.film_every == 0:
            film.append(_main_view(camera.at(step)))
        action = executor.next_action(_observer(camera, adapter, episode, instruction, step))
        step += 1
        holds = dict(environment.step(action))
        for task, succeeded in holds.items():
            if first_success.setdefault(task, None) is None and succeeded:
                first_success[task] = step
    succeeded = _has_succeeded(benchmark, episode, first_success, holds)
    fps = benchmark.film_fps
    if episode.film:
        film.append(_main_view(camera.at(step)))
    elif not succeeded:
        # What the policy saw has been drawn anyway: every failure can be looked at.
        film, fps = camera.drawn, fps * benchmark.film_every / adapter.execute_horizon
    return episode.row() | {
        "start_digest": digest,
        "end_digest": environment.state_digest(),
        "success": succeeded,
        "first_success": first_success,
        "steps": step,
        "infer_ms_p50": round(statistics.median(timed.times_ms), 3),
        "seconds": round(time.perf_counter() - started, 3),
        "video": videos.write_video(output, episode.id, film, max(fps, 1.0)),
    }


def _has_succeeded(
    benchmark: base.Benchmark,
    episode: base.Episode,
    first_success: dict[str, int | None],
    holds: dict[str, bool],
) -> bool:
    if benchmark.success_mode == base.LAST_STEP:
        return holds.get(episode.scored_task, False)
    return first_success.get(episode.scored_task) is not None


def _is_over(
    environment: base.Environment,
    episode: base.Episode,
    first_success: dict[str, int | None],
) -> bool:
    return environment.is_over or any(
        first_success.get(task) is not None for task in episode.ends_on
    )


def _observer(
    camera: _Camera,
    adapter: adapters.Adapter,
    episode: base.Episode,
    instruction: str,
    step: int,
) -> Callable[[], dict[str, Any]]:
    def observe() -> dict[str, Any]:
        if not adapter.observations:
            return {}  # an expert looks at nothing: nothing is drawn for it
        text = f"{episode.id}/{episode.seed}/{step}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        return {**adapter.observe(camera.at(step), instruction), noise.SEED: seed}

    return observe


def _main_view(views: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(views.values())).copy()
