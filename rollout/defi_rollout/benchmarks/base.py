"""What a benchmark is: a frozen table of episodes and an environment that plays them.

Environments run in a process of the simulator's own Python, tables in the user's: see `workers`.

Legend: A action dimension, H W image size.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from defi_rollout import errors
from defi_rollout.benchmarks import adapters, simulators

STANDARD = "standard"
OPPOSITE = "opposite"
EMPTY = "empty"

FIRST_SUCCESS = "first_success"  # a task once reached counts
LAST_STEP = "last_step"  # the task must hold when the episode ends

RESULTS = "results.json"  # in the directory of an evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the user asked to evaluate.

    Attributes:
        tasks: task names; empty for the benchmark's own list.
        episodes: episodes per task, or of a list; None for all that the protocol has.
        seed: another seed gives other starts.
        language: whether half-way starts are played again with the opposite and no instruction.
    """

    tasks: tuple[str, ...]
    episodes: int | None
    seed: int
    language: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One row of the table; its id never changes meaning within a protocol version.

    Attributes:
        id: stable and unique; also the stem of its video's file name.
        task: the scene and start state.
        condition: "standard", or in the language test "opposite" or "empty".
        instruction: text given to the policy first.
        seed: seed of the start.
        start: kind of start state.
        max_steps: steps until it counts as failed.
        scored_task: the task whose success is the row's.
        ends_on: tasks whose success ends the episode; where none are named, the steps or the
            environment's own rule end it.
        film: whether a video is kept.
        stages: the tasks of a chain, in order; what comes after a failed one is not tried.
    """

    id: str
    task: str
    condition: str
    instruction: str
    seed: int
    start: str
    max_steps: int
    scored_task: str
    ends_on: tuple[str, ...]
    film: bool
    stages: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Episode":
        """Rebuilds an episode from the JSON values of its fields."""
        lists = {name: tuple(document[name]) for name in ("ends_on", "stages")}
        return cls(**{**document, **lists})

    def row(self) -> dict[str, Any]:
        """Its row of the results before it is played, without "status"."""
        known = ("id", "task", "condition", "instruction", "seed", "start", "stages")
        return {
            **{name: getattr(self, name) for name in known},
            "start_digest": None,
            "end_digest": None,
            "start_unseen": None,
            "scored_task": self.scored_task,
            "success": False,
            "first_success": {},
            "steps": 0,
            "infer_ms_p50": None,
            "seconds": 0.0,
            "video": None,
        }


class Environment(Protocol):
    """A simulator that plays one episode after the other."""

    def reset(self, episode: Episode) -> str:
        """Places the scene; returns a digest of the start state, 16 hex digits."""
        ...

    @property
    def instruction(self) -> str:
        """What the policy is told now; when it changes, the policy starts anew."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the protocol's own rule has ended the episode."""
        ...

    def observe(self) -> dict[str, np.ndarray]:
        """All that it offers: cameras, uint8 [H, W, 3], the main one first; states, float32 [n]."""
        ...

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Executes an action, float32 [A], without changing it.

        Returns:
            By task whether it has succeeded; of a benchmark that judges by the last step, whether
            it holds now.
        """
        ...

    def expert_action(self) -> np.ndarray:
        """What the scripted expert does now, float32 [A]; UserError where there is none."""
        ...

    def state_digest(self) -> str:
        """16 hex digits of the exact physical state: equal ones are equal to the last bit."""
        ...

    def renderer(self) -> dict[str, Any]:
        """{"vendor", "name", "comparable"} of the renderer in use."""
        ...

    def close(self) -> None:
        """Frees the simulator."""
        ...


class Benchmark(Protocol):
    """A named, versioned protocol."""

    @property
    def name(self) -> str:
        """What users type."""
        ...

    @property
    def simulator(self) -> simulators.Simulator:
        """What plays it."""
        ...

    @property
    def embodiments(self) -> tuple[str, ...]:
        """Robots whose actions it takes, its own and its expert's first."""
        ...

    @property
    def action_dim(self) -> int:
        """A."""
        ...

    @property
    def success_mode(self) -> str:
        """FIRST_SUCCESS or LAST_STEP."""
        ...

    @property
    def film_every(self) -> int:
        """Of how many frames one is filmed."""
        ...

    @property
    def film_fps(self) -> float:
        """Frames a second of the films."""
        ...

    def protocol(self) -> dict[str, Any]:
        """All that fixes the numbers, as JSON, with "name" and "version"."""
        ...

    def episodes(self, plan: Plan) -> list[Episode]:
        """The episodes of `plan`, in order; UserError for unknown tasks."""
        ...

    def check(self, adapter: adapters.Adapter) -> None:
        """Raises UserError where a policy would play that it does not fit; see `check_fits`."""
        ...

    def make_environment(self, task: str, adapter: adapters.Adapter) -> Environment:
        """Loads the simulator with `task`, in the simulator's own Python."""
        ...


def check_plan(
    plan: Plan,
    name: str,
    known: Sequence[str],
    *,
    has_seeds: bool = True,
    has_language: bool = False,
) -> None:
    """Raises UserError for what a benchmark has not, or a task that is named twice.

    Args:
        name: of the benchmark.
        known: its tasks.
        has_seeds: whether other seeds give other starts.
        has_language: whether there is a language test.
    """
    for task in plan.tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=3, cutoff=0.3)
            fix = f"did you mean {', '.join(near)}" if near else f"use {', '.join(known)}"
            raise errors.UserError(f"not a task of {name}", task, fix)
    if len(set(plan.tasks)) < len(plan.tasks):
        raise errors.UserError("a task is named twice", "--tasks", "name each once")
    if plan.seed and not has_seeds:
        raise errors.UserError("the starts are fixed", f"--seed={plan.seed}", "leave it out")
    if plan.language and not has_language:
        fix = "leave it out, or use --benchmark=metaworld"
        raise errors.UserError("there is no language test", "--language", fix)


def count_episodes(plan: Plan, most: int, what: str, default: int | None = None) -> int:
    """How many episodes are wanted; UserError where that is not in 1..`most`.

    Args:
        what: there are `most` of, such as "starts of open_drawer".
        default: wanted where the plan does not say; None for all.
    """
    count = (default or most) if plan.episodes is None else plan.episodes
    if not 1 <= count <= most:
        raise errors.UserError(
            f"{count} episodes of {most} {what}", "--episodes", f"give 1 to {most}"
        )
    return count


def check_fits(benchmark: Benchmark, adapter: adapters.Adapter, offered: Sequence[str]) -> None:
    """Raises UserError where a policy drives another robot or wants what is not offered.

    Args:
        offered: keys of the environment's observation.
    """
    here = f"--benchmark={benchmark.name}"
    if adapter.embodiment not in benchmark.embodiments:
        raise errors.UserError(
            f"the policy drives {adapter.embodiment!r}",
            here,
            f"give one for {' or '.join(map(repr, benchmark.embodiments))}",
        )
    if adapter.action_dim != benchmark.action_dim:
        raise errors.UserError(
            f"{adapter.action_dim} action dimensions", here, f"it takes {benchmark.action_dim}"
        )
    for key, view in adapter.observations.items():
        if view.source not in offered:
            raise errors.UserError(
                f"the policy wants {view.source!r} (as {key!r})", here, f"it offers {[*offered]}"
            )


def describe_protocol(benchmark: Benchmark) -> dict[str, str]:
    """{"name", "version", "sha256"}: equal digests mean equal episodes and rules."""
    protocol = benchmark.protocol()
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {
        "name": protocol["name"],
        "version": protocol["version"],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
